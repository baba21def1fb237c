"""Three kinds of synthetic clinical record: case summary, discharge summary, outpatient note.

Each function draws one record for a disease with the generator it is handed; some fifty microseconds each. The
sentence patterns were written for this repository and copied from nowhere. Synthetic text for demonstration, not
medical advice; no record tells of a real person.
"""

# ruff: noqa: E501 -- a sentence pattern stays on one line
from __future__ import annotations

from random import Random

from ncvc.corpus.clinical.case import Case, finding_sentence, join, some, vital_text
from ncvc.corpus.clinical.lexicon import Disease

_TREATMENTS_THAT_GO_ON = ("リハビリテーション", "訓練", "指導", "ケア", "制限", "管理", "支援")
_INVASIVE = ("冠動脈造影検査", "脳血管撮影")


def _course(case: Case, *, inpatient: bool) -> str:
    """How it went after treatment began."""
    rng = case.rng
    symptom = case.short(case.complaints[0])
    day = rng.randint(max(2, case.stay // 4), max(3, case.stay // 2))
    later = f"{rng.randint(3, 9)}日" if case.disease.onset in "時日" else f"{rng.randint(4, 12)}週間"
    when = f"第{day}病日" if inpatient else f"治療開始{later}後"
    change = case.improved_lab()
    if case.lasting:
        told = rng.choice(
            (
                f"{when}の時点で{symptom}に大きな変化はなく、全身状態は安定していた。",
                f"{when}の評価では{symptom}はおおむね横ばいであった。",
                f"その後、{symptom}の程度は変わらずに経過した。",
            )
        )
    else:
        told = rng.choice(
            (
                f"{when}には{symptom}は軽快した。",
                f"治療への反応は良好で、{when}には{symptom}の改善がみられた。",
                f"{symptom}は徐々に改善し、{when}にはほぼ消失した。",
                f"{when}までに{symptom}は目立たなくなった。",
            )
        )
    return told + (rng.choice((f"{change}。", f"同時期に{change}。", f"検査でも{change}。")) if change else "")


def _outlook(case: Case) -> str:
    """What to watch for afterwards."""
    rng = case.rng
    complication = join(some(rng, case.disease.complications, at_most=2), last="や")
    drug, side_effect = case.drug.name, rng.choice(case.drug.side_effects)
    return rng.choice(
        (
            f"今後は{complication}の出現に注意しながら経過をみる方針である。",
            f"{drug}による{side_effect}の有無を確認しつつ、{complication}の早期発見に努める。",
            f"{case.disease.name}では{complication}を合併することがあり、定期的な評価が必要である。",
            f"{complication}の予防を念頭に、{case.disease.department}での診察を継続する。",
        )
    )


def case_summary(rng: Random, disease: Disease) -> str:
    """症例要約: one patient from complaint to outcome, in running text or in short paragraphs."""
    case = Case(rng, disease)
    inpatient = disease.setting == "急" or (disease.setting == "両" and rng.random() < 0.6)
    department = disease.department
    first = case.complaints[0]
    opening = rng.choice(
        (
            f"症例は{case.person}。{case.because()}{department}を受診した。",
            f"{case.person}。{case.because()}当院{department}を受診した。",
            f"患者は{case.person}で、{case.because()}{department}に紹介された。",
        )
    )
    onset = case.onset()
    worsening = ("徐々に悪化した", "日常生活に支障をきたすようになった", "市販薬では改善しなかった")
    if disease.onset == "時":
        worsening = ("徐々に悪化した", "安静にしても改善しなかった", "時間とともに増強した")
    story = rng.choice(
        (
            f"{onset}から{first}がみられ、改善しないため来院した。",
            f"{onset}より{first}がみられ、次第に増強した。",
            f"{onset}から症状があり、{rng.choice(worsening)}。",
            f"症状は{onset}に始まり、受診時まで続いていた。",
        )
    )
    signs = join(case.signs[: rng.randint(1, 2)], last="と")
    body = rng.choice(
        (f"身体所見では{signs}を認めた。", f"診察上、{signs}を認めた。", f"身体診察で{signs}がみられた。")
    )
    rng.shuffle(case.findings)
    images = "".join(finding_sentence(rng, *finding) for finding in case.findings[: rng.randint(1, 3)])
    diagnosis = rng.choice(
        (
            f"以上の所見から{disease.name}と診断した。",
            f"臨床経過と検査所見を総合し、{disease.name}と診断した。",
            f"これらの結果より{disease.name}の診断に至った。",
        )
    )
    course = _course(case, inpatient=inpatient)
    ending = (
        rng.choice((f"第{case.stay}病日に自宅へ退院した。", f"経過は安定し、第{case.stay}病日に退院した。"))
        if inpatient
        else rng.choice(
            (
                "現在も外来で経過を観察している。",
                f"以後は{rng.randint(4, 12)}週間ごとに外来で経過をみている。",
            )
        )
    )
    if not inpatient and disease.onset in "時日":
        ending = rng.choice(("その後の再燃はなく、経過は良好である。", "再診時には日常生活に復帰していた。"))
    paragraphs = (
        opening + story + case.history() + case.habits(),
        case.vitals_sentence() + body + case.labs_sentence() + images,
        diagnosis + case.start_of_treatment() + course + ending + _outlook(case),
    )
    title = rng.choice((f"症例要約：{disease.name}の1例\n", "症例要約\n", ""))
    return title + rng.choice(("\n", "")).join(paragraphs)


def discharge_summary(rng: Random, disease: Disease) -> str:
    """退院サマリー: headed sections from diagnosis to follow-up."""
    case = Case(rng, disease)
    signs = join(case.signs[: rng.randint(1, 2)], last="と")
    findings = rng.sample(case.findings, min(len(case.findings), rng.randint(1, 3)))
    other = join(name for name, _ in case.comorbidities) if case.comorbidities else ""
    home = case.prescriptions(home=True)
    sections = (
        ("診断名", f"{disease.name}。" + (f"併存症は{other}。" if other else "")),
        ("患者", f"{case.person}。入院期間は{case.stay}日間。"),
        ("主訴", f"{join(case.complaints[: rng.randint(1, 2)])}。"),
        ("現病歴", _present_illness(case)),
        ("既往歴", case.history() + case.habits()),
        ("入院時現症", case.vitals_sentence(when="入院時") + f"{signs}を認めた。"),
        ("検査所見", case.labs_sentence() + "".join(finding_sentence(rng, *item) for item in findings)),
        ("入院後経過", case.start_of_treatment() + _course(case, inpatient=True) + _discharge(case)),
        (
            "退院時処方",
            ("、".join(home) if home else "新たな処方はなし") + "。" + ("既往疾患の内服薬は継続。" if other else ""),
        ),
        ("退院後の方針", _follow_up(case) + _outlook(case)),
    )
    style = rng.choice(("【{}】{}", "{}：{}", "■{}\n{}"))
    return "\n".join(style.format(name, text) for name, text in sections)


def _present_illness(case: Case) -> str:
    disease = case.disease
    acute = disease.onset in "時日" and disease.setting == "急"
    admission = "緊急入院" if acute and case.rng.random() < 0.6 else "入院"
    way = (
        "自宅で様子をみていたが改善せず、",
        "症状が続くため受診し、",
        "近医を受診したところ当院を紹介され、",
    )
    told = f"{case.onset()}から{case.complaints[0]}がみられるようになった。{case.rng.choice(way)}"
    return told + f"精査加療を目的に{disease.department}へ{admission}となった。"


def _discharge(case: Case) -> str:
    rng, vitals = case.rng, case.vitals(treated=True)
    lasting = [item for item in case.disease.treatments if item.endswith(_TREATMENTS_THAT_GO_ON)]
    opening = [f"{rng.choice(lasting)}も継続し、"] if lasting else []
    opening += ["日常生活動作に支障のないことを確認し、", ""]
    state = f"退院時の体温は{vitals['体温']}、血圧は{vitals['血圧']}であり、"
    return f"{rng.choice(opening)}{state}第{case.stay}病日に退院した。"


def _follow_up(case: Case) -> str:
    rng, disease = case.rng, case.disease
    listener = "家族" if case.child or case.age >= 85 else "本人"
    visit = f"{rng.randint(1, 4)}週間後に{disease.department}外来を受診予定である。"
    return f"{visit}{listener}に{rng.choice(disease.advice)}よう説明した。"


def outpatient_note(rng: Random, disease: Disease) -> str:
    """外来経過記録: subjective, objective, assessment, plan; a first visit or a later one."""
    case = Case(rng, disease)
    first_visit = (disease.onset in "時日" and disease.setting == "慢") or rng.random() < 0.35
    parts = _first_visit(case) if first_visit else _later_visit(case)
    kind = "初診" if first_visit else "再診"
    head = f"{disease.department}外来 {kind}　{case.age}歳 {case.sex}"
    style = rng.choice(("{}：{}", "{}）{}", "（{}）{}"))
    return head + "\n" + "\n".join(style.format(letter, text) for letter, text in zip("SOAP", parts, strict=True))


def _first_visit(case: Case) -> tuple[str, str, str, str]:
    rng, disease = case.rng, case.disease
    first = case.complaints[0]
    more = f"{case.complaints[1]}もある。" if len(case.complaints) > 1 and rng.random() < 0.7 else ""
    subjective = f"{case.onset()}から{first}がある。{more}{case.history()}{case.habits()}薬剤アレルギーはない。"
    exam, finding = rng.choice(disease.findings)
    objective = case.vitals_sentence() + f"{join(case.signs[:2], last='と')}を認める。" + case.labs_sentence()
    objective += finding_sentence(rng, exam, finding)
    assessment = rng.choice(
        (
            f"症状と検査所見から{disease.name}と考える。現時点で{rng.choice(disease.complications)}を示す所見はない。",
            f"{disease.name}と診断する。{join(some(rng, disease.causes, at_most=2), last='や')}の関与について問診を続ける。",
            f"{disease.name}。{rng.choice(disease.complications)}への進展に注意が必要である。",
        )
    )
    plan = f"{case.start_of_treatment(planned=True)}{_instruction(case)}{_next_visit(case, soon=True)}"
    return subjective, objective, assessment, plan


def _later_visit(case: Case) -> tuple[str, str, str, str]:
    rng, disease = case.rng, case.disease
    symptom = case.short(case.complaints[0])
    drug, index = case.drugs[0]
    side_effect = rng.choice(drug.side_effects)
    worse = not case.lasting and rng.random() < 0.3
    worsened = (
        f"この1か月ほど{symptom}が再び目立つようになった。",
        f"{symptom}がやや強くなったと感じている。",
    )
    unchanged = (f"{symptom}は前回と変わりない。", f"{symptom}は続いているが、日常生活は送れている。")
    improved = (
        f"{symptom}は前回より軽くなった。",
        f"{symptom}はほとんど気にならなくなった。",
        f"{symptom}で困ることは減った。",
    )
    feeling = rng.choice(worsened if worse else unchanged if case.lasting else improved)
    habit = rng.choice(
        (
            "食欲と睡眠は良好。",
            "睡眠はとれている。",
            "家庭では大きな変わりはない。",
            "飲み忘れは月に1回程度。",
        )
    )
    subjective = f"{feeling}{habit}{drug.name}による{side_effect}を疑う症状は{rng.choice(('ない', '自覚していない'))}。"
    vitals = case.vitals(treated=not worse)
    objective = f"体温{vital_text(vitals)}。" + rng.choice(
        (f"{case.signs[0]}を軽度認める。", f"{case.signs[0]}に前回から著変はない。")
    )
    change = "" if worse else case.improved_lab()
    objective += f"前回と比べて{change}。" if change else case.labs_sentence()
    exam, finding = rng.choice(disease.findings)
    objective += f"{rng.randint(2, 11)}か月前の" + finding_sentence(rng, exam, finding, varied=False)
    more = index + 1 < len(drug.doses)
    if worse:
        assessment = f"{disease.name}のコントロールはやや不良である。服薬状況と生活習慣を確認した。"
    elif case.lasting:
        assessment = f"{disease.name}は{rng.choice(('安定している', '緩徐な経過である'))}。"
    else:
        assessment = f"{disease.name}は{rng.choice(('治療により改善傾向にある', 'おおむね良好に経過している'))}。"
    assessment += f"{join(some(rng, disease.complications, at_most=2), last='や')}の徴候は認めない。"
    if worse and more:
        step = f"{drug.name}を1回{drug.doses[index]}から{drug.doses[index + 1]}へ増量する。"
    else:
        step = f"{join(case.prescriptions())}を継続する。"
    repeatable = [
        exam.name for exam, _ in disease.findings if exam.kind in ("画像", "生理") and exam.name not in _INVASIVE
    ]
    again = f"次回は{rng.choice(repeatable)}を予定する。" if repeatable and rng.random() < 0.6 else ""
    plan = step + again + _instruction(case) + _next_visit(case, soon=worse or disease.onset in "時日")
    return subjective, objective, assessment, plan


def _instruction(case: Case) -> str:
    advice = case.rng.choice(case.disease.advice)
    return case.rng.choice(
        (f"{advice}よう指導した。", f"{advice}よう説明し、理解を得た。", f"{advice}ことの大切さを伝えた。")
    )


def _next_visit(case: Case, *, soon: bool) -> str:
    weeks = case.rng.choice((1, 2)) if soon else case.rng.choice((2, 4, 6, 8, 12))
    return case.rng.choice(
        (f"次回の受診は{weeks}週間後とする。", f"{weeks}週間後に再診とする。", f"次回予約は{weeks}週間後。")
    )

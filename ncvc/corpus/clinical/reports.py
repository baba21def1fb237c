"""Two kinds of synthetic clinical report: the radiologist's on one image, the nurses' on one day.

Each function draws one report for a disease with the generator it is handed; some fifty microseconds each. The
sentence patterns were written for this repository and copied from nowhere. Synthetic text for demonstration, not
medical advice; no report tells of a real person.
"""

from __future__ import annotations

from random import Random

from ncvc.corpus.clinical.case import (
    CONSIDERED,
    INJECTED,
    Case,
    finding_sentence,
    join,
    regimen,
    some,
    vital_text,
)
from ncvc.corpus.clinical.lexicon import Disease, Examination

_MEASURABLE = ("結節", "腫瘤", "嚢胞", "胸腺腫", "空洞性陰影", "結節影")
_WORDLESS = (
    "意識",
    "もうろう",
    "幻聴",
    "考え",
    "片麻痺",
    "鼻出血",
)  # complaints the patient does not tell of


def imaging_report(rng: Random, disease: Disease) -> str:
    """読影レポート: purpose, technique, findings and denied findings, impression; only for diseases with an image."""
    case = Case(rng, disease)
    image = rng.choice([item for item in disease.findings if item[0].kind == "画像"])
    exam = image[0]
    others = [item for item in disease.findings if item[0] is not exam]
    purpose = rng.choice(("疑い", "精査", "評価", "治療前評価"))
    quality = rng.choice(
        (
            "画質は良好である。",
            "体動の影響は軽微である。",
            "撮影範囲は適切である。",
            "読影に支障となる乱れはない。",
        )
    )
    sections = (
        ("検査", f"{exam.name}（{case.age}歳、{case.sex}、{disease.department}より依頼）"),
        ("目的", f"{disease.name}の{purpose}"),
        (
            "臨床情報",
            _clinical_information(case, others, treated=purpose == "評価" and disease.onset in "週月"),
        ),
        ("撮影方法", f"{exam.technique}。{quality}"),
        ("所見", _image_findings(case, *image)),
        ("診断", _impression(case, *image) + _recommendation(rng, exam, others)),
    )
    style = rng.choice(("【{}】{}", "{}：{}", "<{}> {}"))
    return "\n".join(style.format(name, text) for name, text in sections)


def _clinical_information(case: Case, others: list[tuple[Examination, str]], *, treated: bool) -> str:
    text = f"{case.onset()}からの{case.short(case.complaints[0])}。{case.signs[0]}あり。{case.labs_sentence()}"
    if treated:
        text += f"現在、{join(drug.name for drug, _ in case.drugs[:2])}を使用中。"
    if others and case.rng.random() < 0.8:
        text += finding_sentence(case.rng, *case.rng.choice(others))
    return text


def _image_findings(case: Case, exam: Examination, finding: str) -> str:
    """The finding, its size and change, and what is denied: nothing the disease could show."""
    rng, disease = case.rng, case.disease
    shown = not finding.endswith("の欠如")
    text = f"{finding}を認める。" if shown else f"{finding.removesuffix('の欠如')}は認めない。"
    if finding.endswith(_MEASURABLE):
        text += f"病変の最大径は{rng.randint(12, 48)}mmで、辺縁の評価は可能である。"
    if disease.onset in "週月" and shown and rng.random() < 0.6:
        text += f"前回検査（{rng.randint(2, 14)}か月前）と比較して"
        text += rng.choice(("大きな変化はない。", "程度はやや目立つ。", "分布に変化はない。", "著変を認めない。"))
    else:
        text += rng.choice(("比較可能な過去の画像はない。", "過去画像との比較は行っていない。"))
    possible = "".join((disease.name, *(told for _, told in disease.findings), *disease.complications))
    denied = [item for item in exam.absent if item[:2] not in possible]
    for item in rng.sample(denied, min(len(denied), rng.randint(2, 4))):
        text += rng.choice((f"{item}は認めない。", f"{item}を疑う所見はない。"))
    return text


def _impression(case: Case, exam: Examination, finding: str) -> str:
    name = case.disease.name
    if finding.endswith("の欠如"):
        return f"{exam.name}上、明らかな異常を指摘できない。臨床的に疑われる{name}を否定するものではない。"
    return case.rng.choice(
        (
            f"{finding}。{name}として矛盾しない所見である。",
            f"{finding}であり、臨床情報と併せて{name}を第一に考える。",
            f"{name}を疑う{finding}。",
        )
    )


def _recommendation(rng: Random, exam: Examination, others: list[tuple[Examination, str]]) -> str:
    follow = rng.choice(others)[0].name if others else "臨床経過との対比"
    return rng.choice(
        (
            f"{follow}も参考にされたい。",
            f"{follow}を併せて検討されたい。",
            f"治療後は{exam.name}での再評価を勧める。",
        )
    )


def nursing_record(rng: Random, disease: Disease) -> str:
    """看護記録: some entries of one day on the ward, by the clock."""
    case = Case(rng, disease)
    day = rng.randint(1, max(2, case.stay - 1))
    better = day > 3
    first = [_morning(case, day=day), _inspection(case, day=day), _medication(case)]
    rest = rng.sample(_care(case, better=better), rng.randint(2, 4))
    entries = [*first, *rest]
    hours = sorted(rng.sample(range(9, 17), len(entries)))
    lines = [
        f"{hour}:{rng.choice(('00', '10', '20', '30', '45'))} {text}" for hour, text in zip(hours, entries, strict=True)
    ]
    head = f"看護記録　入院{day}日目　{case.person}　{disease.name}（{disease.department}）"
    complication = join(some(rng, disease.complications, at_most=2), last="や")
    plans = (
        f"計画：{complication}の徴候に注意し、観察を続ける。異常時は速やかに医師へ報告する。",
        f"問題：{case.short(case.complaints[0])}による苦痛。目標：症状が和らぎ、安心して療養できる。計画は継続とする。",
        f"評価：{complication}を疑う所見はない。現在の計画を継続する。",
    )
    return "\n".join((head, *lines, rng.choice(plans if better else plans[:2])))


def _morning(case: Case, *, day: int) -> str:
    """Vital signs and what the patient says."""
    rng, better = case.rng, day > 3
    symptom = case.short(case.complaints[0])
    calmer = f"{symptom}は落ち着いてきました"
    if not better:
        said = f"まだ少し{symptom}が気になります"
    elif day > 6 and not case.lasting:
        said = rng.choice((calmer, f"{symptom}はもうほとんどありません"))
    else:
        said = rng.choice((calmer, f"{symptom}は昨日より楽になりました"))
    told = f"{'母親' if case.child else '本人'}より「{said}」との発言あり。"
    if any(word in case.complaints[0] for word in _WORDLESS):
        told = "表情は穏やかで、会話に応じる。" if better else "呼びかけに開眼し、簡単な応答がある。"
    vitals = case.vitals(treated=better)
    return f"体温{vital_text(vitals)}、SpO2 {vitals['SpO2']}。{told}"


def _inspection(case: Case, *, day: int) -> str:
    rng, sign = case.rng, case.signs[0]
    seen = (
        rng.choice((f"{sign}は前日と著変なし。", f"{sign}は軽減している。"))
        if day > 1
        else f"{sign}あり。医師に報告した。"
    )
    more = (
        "皮膚の状態と水分摂取量を確認した。",
        "末梢冷感はない。",
        "",
        f"夜間の睡眠は{rng.randint(4, 8)}時間程度であった。",
    )
    urine = rng.randint(20, 40) * 10 if case.child else rng.randint(45, 110) * 10
    return f"{seen}{rng.choice(more)}尿量は日勤帯で{urine}mL。"


def _medication(case: Case) -> str:
    drug, index = case.drugs[0]
    told = regimen(drug, dose=drug.doses[index])
    given = f"{told}を指示どおり投与した。" if drug.route in INJECTED else f"{told}の{drug.route}を確認した。"
    return f"{given}{case.rng.choice(drug.side_effects)}など副作用を疑う症状はみられない。"


def _care(case: Case, *, better: bool) -> list[str]:
    """Entries of which some are written: treatment, meal, teaching, safety."""
    rng, disease = case.rng, case.disease
    done = [item for item in disease.treatments if not item.endswith(CONSIDERED)] or list(disease.treatments)
    treatment = rng.choice(("担当医の指示を確認した", "多職種で情報を共有した", "目的を説明した"))
    mood = rng.choice(
        (
            "不安の訴えはなく、協力が得られている。",
            "質問があり、わかりやすい言葉で補足した。",
            "表情はやや硬く、傾聴に努めた。",
        )
    )
    meal = f"食事は主食{rng.randint(5, 10)}割、副食{rng.randint(4, 10)}割を摂取した。"
    if "絶食" in "".join(disease.treatments) and not better:
        meal = "絶食の指示が守られている。口渇に対し含嗽を促した。"
    understood = rng.choice(("理解は良好である。", "繰り返しの説明が必要と思われる。", "パンフレットを用いた。"))
    safety = (
        "歩行は安定しており、転倒の危険は低いと判断した。",
        "ベッド柵とナースコールの位置を確認した。",
        "清拭と更衣を介助し、皮膚に発赤のないことを確認した。",
        f"病棟内を{rng.randint(3, 12) * 10}m歩行し、ふらつきはみられなかった。",
    )
    return [
        f"{rng.choice(done)}について{treatment}。{mood}",
        meal,
        f"{rng.choice(disease.advice)}よう{'家族' if case.child else '本人と家族'}に説明した。{understood}",
        rng.choice(safety if better and not case.child else safety[1:3]),
    ]

"""Three kinds of synthetic explanation in textbook style: of a disease, of a drug, of an examination.

Each function draws one text for one entry of the lexicon; some thirty microseconds each. The sentence patterns were
written for this repository and copied from nowhere. Synthetic text for demonstration, not medical advice.
"""

# ruff: noqa: E501 -- a sentence pattern stays on one line
from __future__ import annotations

from random import Random

from ncvc.corpus.clinical.case import complaints, finding_sentence, join, regimen, some
from ncvc.corpus.clinical.lexicon import (
    DISEASES_OF_DRUG,
    FINDINGS_OF_EXAMINATION,
    Disease,
    Drug,
    Examination,
    LabFinding,
)


def disease_article(rng: Random, disease: Disease) -> str:
    """疾患解説: definition, causes, symptoms, examinations, treatment, outlook."""
    name = disease.name
    definition = (
        f"{name}とは、{disease.definition}である。",
        f"{name}は{disease.definition}であり、{disease.department}で扱われることが多い。",
        f"{disease.definition}を{name}という。",
    )
    labs = rng.sample(disease.labs, min(len(disease.labs), rng.randint(1, 2)))
    findings = rng.sample(disease.findings, min(len(disease.findings), rng.randint(1, 2)))
    examined = "".join(_lab_sentence(rng, disease, lab) for lab in labs)
    examined += "".join(finding_sentence(rng, *item, plain_past=False) for item in findings)
    middle = [_causes(rng, disease) + _who(rng, disease), _presentation(rng, disease)]
    if rng.random() < 0.4:
        middle.reverse()
    parts = (rng.choice(definition), *middle, examined, _treatment(rng, disease), _outlook(rng, disease))
    return rng.choice((f"{name}\n", f"疾患解説：{name}\n", "")) + rng.choice(("", "\n")).join(parts)


def _who(rng: Random, disease: Disease) -> str:
    """Age and sex, from the range of the row."""
    lowest, highest = disease.ages
    if highest < 15:
        return rng.choice(("主に乳幼児にみられる。", f"{highest}歳以下の乳幼児に好発する。"))
    decade = lowest // 10 * 10
    if lowest < 30 and highest < 60:
        told = rng.choice(
            (
                f"{decade}歳代からの比較的若い世代に多い。",
                f"若年から中年に好発し、{decade}歳代から発症がみられる。",
            )
        )
    elif lowest < 30:
        told = "幅広い年齢層に発症する。"
    elif lowest < 40:
        told = f"{decade}歳代以降に多い。"
    else:
        told = rng.choice((f"{decade}歳代以降に多い。", f"中高年、とくに{decade}歳代以降に好発する。"))
    return told if len(disease.sexes) > 1 else f"{disease.sexes[0]}の疾患として重要であり、{told}"


def _causes(rng: Random, disease: Disease) -> str:
    return rng.choice(
        (
            f"発症には{join(some(rng, disease.causes, at_most=3), last='や')}が関与する。",
            f"原因や危険因子として{join(rng.sample(disease.causes, len(disease.causes)))}があげられる。",
            f"背景に{join(some(rng, disease.causes, at_most=2), last='や')}をもつ例が少なくない。",
        )
    )


def _presentation(rng: Random, disease: Disease) -> str:
    symptoms = complaints(disease)
    complaint = (
        f"主な症状は{join(rng.sample(symptoms, len(symptoms)))}である。",
        f"患者は{join(some(rng, symptoms, at_most=3), last='や')}を訴えて受診することが多い。",
        f"典型例では{join(some(rng, symptoms, at_most=2), last='と')}がみられる。",
    )
    signs = (
        f"診察では{join(some(rng, disease.signs, at_most=3))}に注目する。",
        f"身体所見として{join(some(rng, disease.signs, at_most=2), last='や')}を認める。",
    )
    return rng.choice(complaint) + rng.choice(signs)


def _lab_sentence(rng: Random, disease: Disease, finding: LabFinding) -> str:
    lab = finding.lab
    lowest, highest = (f"{value:.{max(lab.decimals, 0)}f}" for value in lab.normal)
    normal = f"{lowest}から{highest}{lab.unit}"
    return rng.choice(
        (
            f"検査では{lab.name}が{finding.direction}となる（基準値の目安は{normal}）。",
            f"{lab.name}の基準値はおおむね{normal}であり、{disease.name}では{finding.direction}を示すことが多い。",
            f"検査値では{lab.name}の{finding.direction}が参考になり、基準範囲の{normal}と比較して判断する。",
        )
    )


def _treatment(rng: Random, disease: Disease) -> str:
    drugs = rng.sample(disease.drugs, min(len(disease.drugs), rng.randint(1, 3)))
    told = join((f"{drug.category}の{drug.name}" for drug in drugs), last="や")
    drug = drugs[0]
    others = join(some(rng, disease.treatments, at_most=2), last="や")
    used = (
        f"治療には{told}が用いられる。",
        f"薬物療法では{told}を選択する。",
        f"薬物療法の中心は{told}である。",
    )
    about = (
        f"{drug.name}は{drug.action}薬である。",
        f"{drug.name}の使用中は{join(some(rng, drug.side_effects, at_most=2), last='や')}に注意する。",
        f"たとえば{regimen(drug, dose=rng.choice(drug.doses))}のように処方される。",
    )
    besides = (f"病状に応じて{others}も行われる。", f"薬物以外では{others}が重要である。")
    return rng.choice(used) + rng.choice(about) + rng.choice(besides)


def _outlook(rng: Random, disease: Disease) -> str:
    complications = join(some(rng, disease.complications, at_most=3), last="や")
    outlook = (
        f"経過中に{complications}を合併することがある。",
        f"注意すべき合併症は{complications}である。",
        f"治療が遅れると{complications}に至る場合がある。",
    )
    return rng.choice(outlook) + f"日常生活では{rng.choice(disease.advice)}ことが勧められる。"


def drug_article(rng: Random, drug: Drug) -> str:
    """薬剤解説: class, action, indications, regimen, side effects, cautions."""
    diseases = DISEASES_OF_DRUG[drug.name]
    chosen = rng.sample(diseases, min(len(diseases), rng.randint(1, 3)))
    disease, name = chosen[0], drug.name
    opening = (
        f"{name}は{drug.category}に分類される薬である。",
        f"{drug.category}の一つに{name}がある。",
        f"{name}は{drug.category}であり、{disease.department}の診療でよく使われる。",
    )
    action = (
        f"{drug.action}ことで効果を示す。",
        f"その作用は、{drug.action}ことにある。",
        f"主な働きは、{drug.action}ことである。",
    )
    harm, check = _harm(rng, drug), _check(rng, disease)
    middle = [check, harm] if rng.random() < 0.5 else [harm, check]
    ending = (
        f"{disease.name}では、{rng.choice(disease.advice)}ことも併せて指導する。",
        f"服薬の支援とともに、{rng.choice(disease.advice)}よう患者に伝える。",
    )
    parts = (
        rng.choice(opening),
        rng.choice(action) + _indication(rng, chosen),
        _use(rng, drug, disease),
        *middle,
        rng.choice(ending),
    )
    head = rng.choice((f"{name}\n", f"薬剤解説：{name}（{drug.category}）\n", ""))
    return head + rng.choice(("", "\n")).join(parts)


def _indication(rng: Random, diseases: list[Disease]) -> str:
    disease = diseases[0]
    names = [item.name for item in diseases]
    told = (f"{join(names)}の治療に用いられる。", f"適応となる疾患には{join(names, last='や')}がある。")
    more = (
        f"{disease.name}は{disease.definition}であり、{join(some(rng, complaints(disease), at_most=2), last='や')}を契機に診断される。",
        f"たとえば{disease.name}では、{join(some(rng, disease.treatments, at_most=2), last='や')}と組み合わせて使われる。",
        f"{disease.name}の患者では{join(some(rng, disease.complications, at_most=2), last='や')}の予防も治療の目標となる。",
    )
    return rng.choice(told) + rng.choice(more)


def _use(rng: Random, drug: Drug, disease: Disease) -> str:
    """The regimen of this disease, and how the dose is found."""
    here = next(item for item in disease.drugs if item.name == drug.name)
    doses = here.doses
    use = f"{disease.name}に対する{here.route}の例は{regimen(here, dose=doses[0])}である。"
    if len(doses) == 1:
        return use + rng.choice(("用量は病状に応じて医師が判断する。", "決められた用法を守ることが効果につながる。"))
    return use + rng.choice(
        (
            f"効果と忍容性をみながら{doses[rng.randint(1, len(doses) - 1)]}まで調整することがある。",
            f"用量には{join(doses)}などがあり、年齢や腎機能、症状を考慮して選ぶ。",
        )
    )


def _harm(rng: Random, drug: Drug) -> str:
    effects = rng.sample(drug.side_effects, len(drug.side_effects))
    harm = (
        f"副作用として{join(effects)}が知られている。",
        f"注意すべき副作用は{join(effects[:2], last='と')}である。ほかに{effects[-1]}もあげられる。",
        f"使用中は{join(effects)}の出現に注意して観察する。",
    )
    first, second = rng.sample(drug.cautions, 2)
    caution = (
        f"使用にあたっては、{first}ことが大切である。また、{second}ことも求められる。",
        f"重要な点は、{first}こと、そして{second}ことである。",
        f"患者には、{first}ことと{second}ことの理由を説明する。",
    )
    return rng.choice(harm) + rng.choice(caution)


def _check(rng: Random, disease: Disease) -> str:
    """How the effect is judged: only by tests that show something in this disease."""
    telling = [exam.name for exam, text in disease.findings if not text.endswith("の欠如")]
    measures = [
        *rng.sample(telling, min(1, len(telling))),
        *(finding.lab.name for finding in disease.labs[:2]),
    ]
    symptom = rng.choice(complaints(disease))
    if not measures:
        return f"効果は{symptom}などの症状の推移から判断する。"
    return rng.choice(
        (
            f"効果の判定には{symptom}などの自覚症状のほか、{join(measures, last='や')}が参考になる。",
            f"{disease.name}の経過は、{symptom}の変化に加えて{join(measures, last='や')}などで評価する。",
        )
    )


_KIND_NAMES = {"画像": "画像検査", "内視鏡": "内視鏡検査", "検体": "検体検査", "病理": "病理学的検査"}
_PRESENT = (
    ("繰り返した", "繰り返す"),
    ("行った", "行う"),
    ("得た", "得る"),
    ("調べた", "調べる"),
    ("させた", "させる"),
)


def _present(technique: str) -> str:
    """撮影した -> 撮影する: how it was done as how it is done."""
    for past, present in _PRESENT:
        if technique.endswith(past):
            return technique.removesuffix(past) + present
    return technique.removesuffix("した") + "する"


def examination_article(rng: Random, examination: Examination) -> str:
    """検査解説: purpose, how it is done, preparation, what it shows in which disease."""
    name, technique = examination.name, _present(examination.technique)
    known = FINDINGS_OF_EXAMINATION[name]
    chosen = rng.sample(known, min(len(known), rng.randint(2, 4)))
    opening = (
        f"{name}は、{examination.purpose}ために行われる{_KIND_NAMES.get(examination.kind, '検査')}である。",
        f"{name}の目的は、{examination.purpose}ことである。",
        f"{examination.purpose}際には、{name}が有用である。",
    )
    first, second = rng.sample(examination.preparations, 2)
    preparation = (
        f"検査にあたっては、{first}こと、また{second}ことが必要である。",
        f"正確な結果を得るために、{first}ことと{second}ことを徹底する。",
        f"注意点として、{first}こと、{second}ことがあげられる。",
    )
    done = rng.choice((f"実際の手順では、{technique}。", f"標準的な方法では、{technique}。"))
    limits = (
        "ただし、単独で診断が確定するとは限らず、ほかの検査と組み合わせることが多い。",
        "所見がなくても疾患を完全には否定できない点に留意する。",
        "結果の解釈には年齢や併存する疾患の影響を考慮する。",
    )
    disease = chosen[0][0]
    after = f"診断がついた後は、{join((drug.name for drug in disease.drugs[:2]), last='や')}などによる治療の経過をみる際にも利用される。"
    parts = (
        rng.choice(opening) + done + rng.choice(preparation),
        "".join(_shows(rng, *item) for item in chosen),
        _example(rng, examination, disease),
        rng.choice(limits) + after,
    )
    return rng.choice((f"{name}\n", f"検査解説：{name}\n", "")) + rng.choice(("", "\n")).join(parts)


def _shows(rng: Random, disease: Disease, finding: str) -> str:
    if finding.endswith("の欠如"):
        return f"{disease.name}の診療では、{finding.removesuffix('の欠如')}がないことを確かめる目的で用いられる。"
    return rng.choice(
        (
            f"{disease.name}では{finding}がみられる。",
            f"{finding}を認めた場合は、症状と併せて{disease.name}を考える。",
            f"{disease.name}を疑う場合、{finding}の有無が診断の手がかりとなる。",
        )
    )


def _example(rng: Random, examination: Examination, disease: Disease) -> str:
    """A patient for whom the examination would be planned, and what its result is read with."""
    person = f"{rng.randint(*disease.ages)}歳の{rng.choice(disease.sexes) if disease.ages[1] > 14 else '患児'}"
    symptoms = join(some(rng, complaints(disease), at_most=2), last="と")
    signs = join(some(rng, disease.signs, at_most=2), last="や")
    told = (
        f"たとえば{person}が{symptoms}を訴え、{signs}を認める場合、{disease.name}を念頭に{examination.name}を計画する。"
    )
    if not disease.labs:
        return told + "結果は問診や診察の所見と照らし合わせて判断する。"
    labs = join((f.lab.name for f in rng.sample(disease.labs, len(disease.labs))), last="や")
    return told + f"{labs}などの検査値と照らし合わせて判断する。"

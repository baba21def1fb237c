"""Synthetic explanations for patients: questions about a disease and plain, polite answers.

Some thirty microseconds a text. The sentence patterns were written for this repository and copied from nowhere.
Synthetic text for demonstration, not medical advice.
"""

from __future__ import annotations

from random import Random

from ncvc.corpus.clinical.case import complaints, join, regimen, some
from ncvc.corpus.clinical.lexicon import Disease


def patient_questions(rng: Random, disease: Disease) -> str:
    """患者向け説明: what the disease is, then four or five further questions in any order."""
    name = disease.name
    chosen = question_pairs(rng, disease, at_least=4)
    question, answer = rng.choice((("問：", "答："), ("Q. ", "A. "), ("患者：", "医師："), ("質問　", "回答　")))
    head = rng.choice((f"{name}についての質問と回答\n", f"患者さん向け説明：{name}\n", ""))
    return head + "\n".join(f"{question}{asked}\n{answer}{told}" for asked, told in chosen)


def question_pairs(rng: Random, disease: Disease, *, at_least: int) -> list[tuple[str, str]]:
    """(question, answer): what the disease is, then ``at_least`` to five of five further questions in any order."""
    pairs = [
        _symptoms(rng, disease),
        _examination(rng, disease),
        _drug(rng, disease),
        _treatment(rng, disease),
        _life(rng, disease),
    ]
    return [_what(rng, disease), *rng.sample(pairs, rng.randint(at_least, 5))]


def _what(rng: Random, disease: Disease) -> tuple[str, str]:
    name = disease.name
    asked = (
        f"{name}とはどのような病気ですか。",
        f"{name}と言われました。どんな病気でしょうか。",
        f"{name}について教えてください。",
    )
    causes = (
        f"{join(some(rng, disease.causes, at_most=3), last='や')}などが関係すると考えられています。",
        f"背景には{join(some(rng, disease.causes, at_most=2), last='や')}などがあるといわれています。",
    )
    return rng.choice(asked), f"{disease.plain}です。{rng.choice(causes)}"


def _symptoms(rng: Random, disease: Disease) -> tuple[str, str]:
    asked = (
        "どのような症状が出ますか。",
        "どんなことに気をつけて様子をみればよいですか。",
        "この病気の症状を教えてください。",
    )
    known = complaints(disease)
    told = f"{join(rng.sample(known, min(len(known), rng.randint(2, 3))), last='や')}などがみられます。"
    risk = join(some(rng, disease.complications, at_most=2), last="や")
    return rng.choice(asked), told + f"{risk}を起こすこともあるため、変化に気づいたら早めにご相談ください。"


def _examination(rng: Random, disease: Disease) -> tuple[str, str]:
    exam, finding = rng.choice(disease.findings)
    asked = (
        "どのような検査をしますか。",
        f"{exam.name}を勧められましたが、何のための検査ですか。",
        "検査について教えてください。",
    )
    told = f"{disease.name}では{exam.name}などを行います。これは、{exam.purpose}ための検査です。"
    told += f"検査を受ける方には、{rng.choice(exam.preparations)}ようお願いしています。"
    if not finding.endswith("の欠如"):
        told += f"{disease.name}では{finding}がみられることがあります。"
    return rng.choice(asked), told


def _drug(rng: Random, disease: Disease) -> tuple[str, str]:
    drug = rng.choice(disease.drugs)
    asked = (
        f"{drug.name}はどんな薬ですか。",
        f"処方された{drug.name}について教えてください。",
        "薬の働きを教えてください。",
    )
    use = (
        f"{regimen(drug, dose=rng.choice(drug.doses))}のように使いますが、量は人によって異なります。",
        "効果を確かめながら、医師が量を調整します。",
    )
    effects = join(some(rng, drug.side_effects, at_most=2), last="や")
    harm = f"{effects}が出ることがありますので、気になる症状があればお知らせください。"
    return rng.choice(asked), f"{drug.name}は、{drug.action}お薬です。{rng.choice(use)}{harm}"


def _treatment(rng: Random, disease: Disease) -> tuple[str, str]:
    asked = (
        "薬のほかにはどのような治療がありますか。",
        "治療はどのように進みますか。",
        "どんな治療をするのですか。",
    )
    drugs = join((drug.name for drug in rng.sample(disease.drugs, min(2, len(disease.drugs)))), last="や")
    others = join(some(rng, disease.treatments, at_most=2), last="や")
    told = f"病状に合わせて、{drugs}などの薬に加え、{others}を行うことがあります。"
    return rng.choice(asked), told + f"方針は{disease.department}の担当医と一緒に決めていきます。"


def _life(rng: Random, disease: Disease) -> tuple[str, str]:
    asked = (
        "ふだんの生活で気をつけることはありますか。",
        "自宅ではどのように過ごせばよいですか。",
        "生活上の注意を教えてください。",
    )
    first, second, third = rng.sample(disease.advice, 3)
    more = (
        "無理のない範囲で続けてください。",
        "わからないことは遠慮なくお尋ねください。",
        f"さらに、{third}ことも心がけてください。",
    )
    return rng.choice(asked), f"{first}ことが大切です。また、{second}ようにしましょう。{rng.choice(more)}"

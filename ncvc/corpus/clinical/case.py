"""One invented patient with a disease, and the phrases that tell of him or her.

Everything about a case is drawn from the rows of its disease with the random generator that is handed in,
so values fit the disease, the age and the sex. Costs some ten microseconds a case. Knows nothing of
document kinds (`records`), and no real patient stands behind a case. Synthetic text for
demonstration, not medical advice.
"""

# ruff: noqa: E501 -- a sentence pattern stays on one line
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from ncvc.corpus.clinical.lexicon import DISEASES, DRUGS, Disease, Drug, Examination, LabFinding

# Drugs of which a patient gets at most one: the same purpose, or one follows the other.
_ALTERNATIVES = (
    {"ボノプラザン", "ランソプラゾール"},
    {"エナラプリル", "テルミサルタン"},
    {"セフトリアキソン", "アンピシリン・スルバクタム", "レボフロキサシン", "セフメタゾール"},
    {"ニンテダニブ", "ピルフェニドン"},
    {"セルトラリン", "エスシタロプラム"},
    {"アリピプラゾール", "リスペリドン"},
    {"ヘパリン", "アピキサバン", "エドキサバン"},
    {"レベチラセタム", "ラコサミド"},
    {"リナグリプチン", "セマグルチド"},
    {"ロキソプロフェン", "アセトアミノフェン", "セレコキシブ"},
    {"インフリキシマブ", "プレドニゾロン"},
    {"ビソプロロール", "カルベジロール"},
    {"コルヒチン", "フェブキソスタット"},  # not begun during an attack
)
# Long-standing diseases an older patient may also have, with their drug and the diseases they would contradict.
_COMORBIDITIES = (
    ("高血圧症", "アムロジピン", {"原発性アルドステロン症", "急性大動脈解離", "敗血症"}),
    ("脂質異常症", "ロスバスタチン", {"バセドウ病", "橋本病", "ネフローゼ症候群"}),
    ("2型糖尿病", "リナグリプチン", {"1型糖尿病", "急性膵炎"}),
    ("逆流性食道炎", "ランソプラゾール", {"胃潰瘍", "胃癌", "急性心筋梗塞"}),
)
# Diseases that treatment holds rather than heals: symptoms stay, values do not become normal.
_LASTING = frozenset(
    {
        *("慢性腎臓病", "特発性肺線維症", "アルツハイマー型認知症", "パーキンソン病", "原発開放隅角緑内障"),
        *("大動脈弁狭窄症", "肺腺癌", "慢性閉塞性肺疾患", "肝硬変", "前立腺癌", "下肢閉塞性動脈疾患"),
        *("変形性膝関節症", "胃癌", "大腸癌", "多発性骨髄腫", "骨粗鬆症"),
    }
)
_MODIFIERS = (
    "突然の",
    "限局した",
    "急な",
    "激しい",
    "強い",
    "持続する",
    "長引く",
    "引き裂かれるような",
)
_ONSETS = {
    "時": ("来院の{n}時間前", "受診当日の早朝", "受診当日の夕方", "受診前日の夜"),
    "日": ("来院の{n}日前", "受診する{n}日前", "{n}日ほど前"),
    "週": ("来院の{n}週間前", "{n}週間ほど前", "受診の約{n}週間前"),
    "月": ("受診の{n}か月前", "{n}か月ほど前", "約{n}か月前", "1年ほど前"),
}
CONSIDERED = ("の検討", "の説明")  # 手術の検討: a treatment not done yet
INJECTED = frozenset({"点滴静注", "持続静注", "筋肉内注射"})  # not continued at home


def join(items: Iterable[str], *, last: str = "、") -> str:
    """Nouns as one phrase: 甲、乙`last`丙."""
    words = list(items)
    if any(last in word for word in words):  # 発赤と腫脹 with 熱感: not 発赤と腫脹と熱感
        last = {"と": "、および", "や": "、"}.get(last, last)
    return words[0] if len(words) == 1 else "、".join(words[:-1]) + last + words[-1]


def some(rng: Random, items: Sequence[str], *, at_most: int) -> list[str]:
    """One to `at_most` different items in random order."""
    return rng.sample(list(items), min(len(items), rng.randint(1, at_most)))


def complaints(disease: Disease) -> list[str]:
    """The symptoms a patient feels: all but 健診での…の指摘."""
    return [symptom for symptom in disease.symptoms if not symptom.startswith("健診での")]


def vital_text(vitals: dict[str, str]) -> str:
    """36.5℃、血圧128/76mmHg、脈拍72/分."""
    return f"{vitals['体温']}、血圧{vitals['血圧']}、脈拍{vitals['脈拍']}"


def regimen(drug: Drug, *, dose: str) -> str:
    """A drug with how it is given: アムロジピン（1回5mg、1日1回朝食後）."""
    if drug.timing == "持続投与":
        return f"{drug.name}（{dose}）"
    each = "" if dose.startswith(("体重", "体表", "適量")) else "1回"
    return f"{drug.name}（{each}{dose}、{drug.timing}）"


def finding_sentence(
    rng: Random, examination: Examination, finding: str, *, plain_past: bool = True, varied: bool = True
) -> str:
    """What an examination showed; a finding that ends in の欠如 is told as not there.

    `plain_past` off tells it in the present, as a rule; `varied` off tells it so that a date can stand before it.
    """
    name = examination.name
    if finding.endswith("の欠如"):
        absent = finding.removesuffix("の欠如")
        tail = rng.choice(("認めなかった", "みられなかった")) if plain_past else "認めない"
        return f"{name}では{absent}は{tail}。"
    if not plain_past:
        return f"{name}では{finding}を認める。"
    if not varied:
        return f"{name}では{finding}を認めている。"
    return rng.choice(
        (
            f"{name}では{finding}を認めた。",
            f"{name}で{finding}がみられた。",
            f"{name}を施行したところ、{finding}を認めた。",
            f"{name}の結果、{finding}が確認された。",
        )
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """A laboratory value of a case, and the value after treatment (None where it does not follow treatment)."""

    finding: LabFinding
    before: str
    after: str | None

    def told(self, *, after: bool = False) -> str:
        """CRP 8.43mg/dL."""
        return f"{self.finding.lab.name} {self.after if after else self.before}{self.finding.lab.unit}"


def _measure(rng: Random, finding: LabFinding, *, lasting: bool) -> Measured:
    lab = finding.lab

    def written(value: float) -> str:
        return f"{value:.{lab.decimals}f}" if lab.decimals >= 0 else str(round(value / 100) * 100)

    # squared: mild deviations are commoner than extreme ones
    weight = rng.random() ** 2
    first, last = finding.span if finding.direction == "高値" else finding.span[::-1]
    before = first + (last - first) * weight
    if lab.steady:
        return Measured(finding, written(before), None)
    edge = lab.normal[1] if finding.direction == "高値" else lab.normal[0]
    rest = rng.uniform(0.75, 0.95) if lasting else rng.uniform(0.08, 0.45)
    after = written(edge + (before - edge) * rest)
    return Measured(finding, written(before), after if after != written(before) else None)


class Case:
    """A patient drawn for one disease: person, complaint, signs, values, findings and treatment, all coherent."""

    def __init__(self, rng: Random, disease: Disease) -> None:
        self.rng = rng
        self.disease = disease
        self.age = rng.randint(*disease.ages)
        self.sex = rng.choice(disease.sexes)
        self.child = self.age < 15
        self.lasting = disease.name in _LASTING
        self.symptoms = rng.sample(disease.symptoms, len(disease.symptoms))
        self.complaints = [s for s in self.symptoms if not s.startswith("健診での")]
        self.signs = rng.sample(disease.signs, len(disease.signs))
        self.labs = [_measure(rng, finding, lasting=self.lasting) for finding in disease.labs]
        self.findings = list(disease.findings)
        self.drugs = [(drug, rng.randrange(max(1, len(drug.doses) - 1))) for drug in self._choose_drugs()]
        self.stay = rng.randint(*disease.stay)
        self.comorbidities = self._choose_comorbidities()

    def _choose_drugs(self) -> list[Drug]:
        first, *others = self.disease.drugs
        chosen = [first]
        for drug in self.rng.sample(others, self.rng.randint(min(1, len(others)), min(3, len(others)))):
            rivals = {name for group in _ALTERNATIVES if drug.name in group for name in group}
            if all(other.name not in rivals and other.category != drug.category for other in chosen):
                chosen.append(drug)
        return chosen

    def _choose_comorbidities(self) -> list[tuple[str, Drug]]:
        if self.age < 50:
            return []
        taken = {drug.name for drug in self.disease.drugs} | {drug.category for drug in self.disease.drugs}
        possible = [
            (name, DRUGS[drug])
            for name, drug, contradicted in _COMORBIDITIES
            if name != self.disease.name
            and self.disease.name not in contradicted
            and drug not in taken
            and DRUGS[drug].category not in taken
        ]
        return self.rng.sample(possible, self.rng.randint(0, min(2, len(possible))))

    @property
    def person(self) -> str:
        """68歳の男性, 3歳の女児."""
        return f"{self.age}歳の{self.sex.replace('性', '児') if self.child else self.sex}"

    @property
    def drug(self) -> Drug:
        """The first drug of the treatment."""
        return self.drugs[0][0]

    def short(self, symptom: str) -> str:
        """The symptom without how it began: 突然の胸痛 becomes 胸痛."""
        for modifier in _MODIFIERS:
            symptom = symptom.removeprefix(modifier)
        return symptom

    def because(self) -> str:
        """Why the patient came: 発熱と膿性痰を主訴に, 健診での高血糖の指摘を契機に."""
        first, second = self.symptoms[0], self.symptoms[1]
        if first.startswith("健診での"):
            return f"{first}を契機に"
        if second.startswith("健診での") or self.rng.random() < 0.4:
            return f"{first}を主訴に"
        return f"{first}と{second}を主訴に"

    def onset(self) -> str:
        """来院の3日前."""
        longest = {"時": 9, "日": 6, "週": 6, "月": 10}[self.disease.onset]
        return self.rng.choice(_ONSETS[self.disease.onset]).format(n=self.rng.randint(2, longest))

    def history(self) -> str:
        """Past history with its drugs."""
        if not self.comorbidities:
            return self.rng.choice(
                (
                    "特記すべき既往歴はない。",
                    "既往歴に特記すべきことはない。",
                    "これまで大きな病気の既往はない。",
                )
            )
        names = join(name for name, _ in self.comorbidities)
        drugs = join(regimen(drug, dose=self.rng.choice(drug.doses[:2])) for _, drug in self.comorbidities)
        return self.rng.choice(
            (
                f"既往に{names}があり、{drugs}を内服している。",
                f"{names}で通院中であり、{drugs}を内服している。",
            )
        )

    def habits(self) -> str:
        """Smoking and drinking, as far as the disease asks for them; "" below 22 years."""
        if self.age < 22:
            return ""
        text = "".join(self.disease.causes)
        smokes = "長年の喫煙" in text or ("喫煙" in text and self.rng.random() < 0.6)
        drinks = any(word in text for word in ("多量の飲酒", "長年の飲酒", "過度の飲酒"))
        years = max(2, min(self.age - 20, self.rng.randint(8, 45)))
        smoking = f"喫煙歴は1日{self.rng.choice((10, 15, 20, 30))}本を{years}年間で"
        drinking = f"飲酒は日本酒換算で1日{self.rng.randint(2, 4)}合である。"
        if smokes:
            return f"{smoking}、{drinking if drinks else self.rng.choice(('飲酒は機会飲酒である。', '飲酒の習慣はない。'))}"
        if drinks:
            return f"喫煙歴はなく、{drinking}"
        stopped = f"喫煙は{min(self.age - 22, self.rng.randint(2, 20))}年前にやめており、飲酒は機会飲酒である。"
        unremarkable = (
            "喫煙歴はなく、飲酒は機会飲酒である。",
            "喫煙と飲酒の習慣はない。",
            "喫煙歴、飲酒歴ともにない。",
            "",
            "",
        )
        return self.rng.choice((*unremarkable, stopped if self.age >= 30 else ""))

    def vitals(self, *, treated: bool = False) -> dict[str, str]:
        """Vital signs by name, deviating as the disease says (none after treatment)."""
        rng, flags = self.rng, frozenset() if treated else self.disease.vitals
        temperature = (380, 396) if "発熱" in flags else (372, 379) if "微熱" in flags else (362, 368)
        pulse = (104, 128) if "頻脈" in flags else (88, 102) if "発熱" in flags else (62, 84)
        pulse = (50, 58) if "軽度徐脈" in flags else pulse
        systolic = (152, 188) if "高血圧" in flags else (76, 90) if "低血圧" in flags else (112, 136)
        breaths = (22, 30) if "頻呼吸" in flags else (14, 18)
        if self.child:
            pulse, systolic, breaths = ((120, 152) if flags else (98, 118)), (88, 102), (24, 32)
        oxygen = (86, 91) if "低酸素" in flags else (92, 94) if "軽度低酸素" in flags else (96, 99)
        upper = rng.randint(*systolic)
        return {
            "体温": f"{rng.randint(*temperature) / 10:.1f}℃",
            "血圧": f"{upper}/{round(upper * rng.uniform(0.54, 0.62))}mmHg",
            "脈拍": f"{rng.randint(*pulse)}/分",
            "呼吸数": f"{rng.randint(*breaths)}/分",
            "SpO2": f"{rng.randint(*oxygen)}%（室内気）",
        }

    def consciousness(self) -> str:
        """意識清明, or a level of the Japan Coma Scale where the disease clouds it."""
        clouded = "意識障害" in self.disease.vitals
        return f"意識レベルはJCS {self.rng.choice(('I-2', 'I-3', 'II-10'))}" if clouded else "意識は清明"

    def vitals_sentence(self, *, when: str = "") -> str:
        """来院時、意識は清明、体温38.6℃、…であった。"""
        values = "、".join(
            f"{name} {value}" if name == "SpO2" else f"{name}{value}" for name, value in self.vitals().items()
        )
        return f"{when or self.rng.choice(('来院時', '初診時', '診察時'))}、{self.consciousness()}、{values}であった。"

    def labs_sentence(self, *, test: str = "血液検査") -> str:
        """The abnormal values before treatment, the high ones and the low ones."""
        if not self.labs:
            return f"{test}に明らかな異常は認めなかった。"
        told = [
            "、".join(lab.told() for lab in self.labs if lab.finding.direction == direction) + f"と{direction}"
            for direction in ("高値", "低値")
            if any(lab.finding.direction == direction for lab in self.labs)
        ]
        urine = any(lab.finding.lab.name == "尿蛋白" for lab in self.labs)
        opening = "血液および尿検査では" if urine and test == "血液検査" else f"{test}では"
        return opening + "、".join(told) + self.rng.choice(("を認めた。", "であった。", "を示した。"))

    def improved_lab(self) -> str:
        """One value before and after treatment, '' where none follows it."""
        changed = [lab for lab in self.labs if lab.after is not None]
        if not changed:
            return ""
        lab = self.rng.choice(changed)
        verb = "低下" if lab.finding.direction == "高値" else "上昇"
        return f"{lab.finding.lab.name}は{lab.before}から{lab.after}{lab.finding.lab.unit}へ{verb}した"

    def prescriptions(self, *, home: bool = False) -> list[str]:
        """Each drug with its regimen; at `home` only those that do not need a drip."""
        return [
            regimen(drug, dose=drug.doses[index])
            for drug, index in self.drugs
            if not home or drug.route not in INJECTED
        ]

    def start_of_treatment(self, *, planned: bool = False) -> str:
        """甲（…）の点滴静注、乙（…）の内服を開始した; `planned`: 開始する."""
        drugs = join(f"{regimen(drug, dose=drug.doses[index])}の{drug.route}" for drug, index in self.drugs[:3])
        other = self.rng.choice(self.disease.treatments)
        if planned:
            return self.rng.choice(
                (
                    f"{drugs}を開始し、{other}を併せて行う。",
                    f"{drugs}を開始する。薬物療法に加えて{other}を行う。",
                    f"本日より{drugs}を開始する。{other}についても説明した。",
                )
            )
        return self.rng.choice(
            (
                f"{drugs}を開始し、併せて{other}を行った。",
                f"治療として{drugs}を開始した。加えて{other}を行った。",
                f"{drugs}を開始した。薬物療法に加え、{other}も行った。",
                f"{other}を行うとともに、{drugs}を開始した。",
            )
        )


assert all(name in DISEASES and drug in DRUGS for name, drug, _ in _COMORBIDITIES)

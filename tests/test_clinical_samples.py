"""The synthetic clinical text: the same bytes everywhere, coherent with its lexicon, and without repeats.

The checks read the written text back with patterns of their own and compare it with the lexicon; they do not
trust the generator to say what it wrote.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from ncvc.corpus.clinical import lexicon
from ncvc.corpus.clinical.lexicon import DISEASES, DISEASES_OF_DRUG, DRUGS, EXAMINATIONS, LABS
from ncvc.corpus.clinical.samples import KINDS, generate_documents, plan_document, write_clinical_samples
from ncvc.corpus.documents import Document

COUNT = 4000
ABOUT_A_DISEASE = tuple(kind for kind in KINDS if kind not in ("drug_article", "examination_article"))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(generate_documents(documents=COUNT, seed=0))


@pytest.fixture(scope="module")
def about(documents):
    """(kind, topic, text) of every document, the topic from the plan."""
    return [(*plan_document(index, seed=0), document.text) for index, document in enumerate(documents)]


def digest(documents) -> str:
    return hashlib.sha256("\n\n".join(f"{d.id}\n{d.text}" for d in documents).encode()).hexdigest()


def test_the_first_documents_are_pinned(documents):
    """A change of pattern or lexicon changes this on purpose; a change of Python or platform must not."""
    assert digest(documents[:40]) == "288ee09cf744b57e1af4c45b6c8e838ddd12324f93b0608abc9aaed8db7fbeb4"
    assert digest(documents) == "bd1394f5956027a158ce323f905056a7d2ef021a72ff80cfe5e73f7504d64b06"


def test_another_process_with_another_hash_seed_writes_the_same_bytes(tmp_path, documents):
    code = (
        "import sys; from pathlib import Path;"
        "from ncvc.corpus.clinical.samples import write_clinical_samples as w;"
        "w(Path(sys.argv[1]), documents=60, seed=0); assert 'torch' not in sys.modules"
    )
    for hash_seed in ("1", "2"):
        path = tmp_path / f"{hash_seed}.jsonl"
        subprocess.run([sys.executable, "-c", code, path], check=True, env={"PYTHONHASHSEED": hash_seed})
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert [(line["id"], line["text"]) for line in lines] == [(d.id, d.text) for d in documents[:60]]


def test_a_longer_run_begins_with_the_shorter(documents):
    for count in (0, 1, 24, 25, 26, 333):
        assert list(generate_documents(documents=count, seed=0)) == documents[:count]


def test_seeds_differ(documents):
    other = {document.text for document in generate_documents(documents=500, seed=1)}
    assert len(other) == 500
    assert not other & {document.text for document in documents}


def test_the_file_holds_the_documents_and_its_size_is_returned(tmp_path, documents):
    path = tmp_path / "new" / "samples.jsonl"
    size = write_clinical_samples(path)
    assert size == path.stat().st_size
    assert 4_500_000 < size < 6_000_000
    lines = path.read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == [{"id": d.id, "text": d.text} for d in documents]
    assert [item.name for item in path.parent.iterdir()] == ["samples.jsonl"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "samples.jsonl"
    write_clinical_samples(path, documents=3)
    before = path.read_bytes()
    broken = iter([Document("text", "id"), None])
    monkeypatch.setattr("ncvc.corpus.clinical.samples.generate_documents", lambda **_: broken)
    with pytest.raises(AttributeError):
        write_clinical_samples(path, documents=2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_negative_count_is_refused_by_name_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="documents=-1 cannot be negative: set"):
        generate_documents(documents=-1, seed=0)
    with pytest.raises(ValueError, match="documents=-1"):
        write_clinical_samples(tmp_path / "x" / "samples.jsonl", documents=-1)
    assert list(tmp_path.iterdir()) == []


def test_ids_are_unique_and_tell_the_kind(documents, about):
    assert len({document.id for document in documents}) == COUNT
    for index, (document, (kind, _, _)) in enumerate(zip(documents, about, strict=True)):
        assert document.id == f"clinical-0-{index:06d}-{kind}"


def test_every_kind_occurs_in_each_25_documents(about):
    for start in range(0, COUNT - 25, 25):
        assert {kind for kind, _, _ in about[start : start + 25]} == set(KINDS)


def test_every_entry_of_the_lexicon_is_the_topic_of_a_document_and_named_in_it(about):
    topics = {kind: set() for kind in KINDS}
    for kind, topic, text in about:
        assert topic in text
        topics[kind].add(topic)
    assert topics["drug_article"] == set(DRUGS)
    assert topics["examination_article"] == set(EXAMINATIONS)
    for kind in ("case_summary", "disease_article", "patient_questions"):
        assert topics[kind] == set(DISEASES)
    everything = "\n".join(text for _, _, text in about)
    unused = [name for name in (*LABS, *DRUGS, *EXAMINATIONS) if name not in everything]
    assert unused == []
    for disease in DISEASES.values():
        for word in (
            *disease.signs,
            *disease.treatments,
            *disease.complications,
            *disease.advice,
            *disease.causes,
        ):
            assert word in everything, (disease.name, word)


def test_no_document_repeats_and_sentences_repeat_little(documents):
    assert len({document.text for document in documents}) == COUNT
    sentences = Counter(re.findall(r"[^。\n]+。", "\n".join(d.text for d in documents)))
    long = {sentence: count for sentence, count in sentences.items() if len(sentence) > 25}
    assert len(sentences) / sentences.total() > 0.5  # 0.53 measured
    assert len(long) / sum(long.values()) > 0.65  # 0.67 measured
    assert max(long.values()) < 100  # 60 measured


def test_documents_have_the_promised_length(documents):
    lengths = [len(document.text) for document in documents]
    assert 400 < sum(lengths) / COUNT < 600
    assert min(lengths) > 200
    assert max(lengths) < 1000


ALLOWED = re.compile("[ぁ-んァ-ヶー一-龥々αβγμ℃、。「」【】（）・：■　0-9A-Za-z %+./:<>\n-]*")


def test_text_is_clean_japanese_that_ends_with_a_full_stop(documents):
    for document in documents:
        text = document.text
        assert ALLOWED.fullmatch(text), set(re.sub(ALLOWED, "", text))
        assert text.endswith("。")
        assert text == text.strip()
        for wrong in (
            "。。",
            "、、",
            "、。",
            "。、",
            "をを",
            "のの",
            "がが",
            "はは",
            "にに",
            "None",
            "\n\n",
            "の欠如",
            "（）",
            "「」",
        ):
            assert wrong not in text, (wrong, text)
        plain = re.sub("^[SOAP]）", "", text, flags=re.M)
        assert plain.count("（") == plain.count("）")
        assert text.count("「") == text.count("」")
        assert text.count("【") == text.count("】")


def test_drugs_belong_to_a_disease_that_the_document_names(about):
    """Over all diseases named: the topic, and past diseases with their own drugs."""
    checked = 0
    for kind, _, text in about:
        if kind not in ABOUT_A_DISEASE:
            continue
        named = [disease for disease in DISEASES.values() if disease.name in text]
        own = {drug.name for disease in named for drug in disease.drugs}
        for name in DRUGS:
            if re.search(f"(?<![ァ-ヶー・]){name}（", text) or f"{name}は、" in text or f"{name}による" in text:
                assert name in own, (name, text)
                checked += 1
    assert checked > 5000


def test_doses_are_those_of_the_lexicon(about):
    checked = 0
    for _, _, text in about:
        for written in re.findall(r"（(?:1回)?([^、（）]+)、([^（）]+)）", text):
            dose, timing = written
            if not re.match(r"[0-9.]+(?:mg|g|μg|mL|単位|錠|吸入|滴|噴霧)$", dose):
                continue
            regimens = [
                (d, drug.timing)
                for disease in DISEASES.values()
                if disease.name in text
                for drug in disease.drugs
                if drug.name in text
                for d in drug.doses
            ]
            assert (dose, timing) in regimens, (written, text)
            checked += 1
    assert checked > 4000


def test_a_case_shows_the_symptoms_signs_findings_and_tests_of_its_disease(about):
    others = {
        finding: {d.name for d in DISEASES.values() if any(finding == text for _, text in d.findings)}
        for d in DISEASES.values()
        for _, finding in d.findings
        if not finding.endswith("の欠如") and len(finding) >= 10
    }
    for kind, topic, text in about:
        if kind not in ABOUT_A_DISEASE:
            continue
        disease = DISEASES[topic]
        own = [text_ for _, text_ in disease.findings]
        if kind in ("case_summary", "discharge_summary", "disease_article"):
            assert any(symptom in text for symptom in disease.symptoms), text
            assert any(sign in text for sign in disease.signs), text
            assert any(finding.removesuffix("の欠如") in text for finding in own), text
            assert any(drug.name in text for drug in disease.drugs), text
        for finding, owners in others.items():
            if finding in text and not any(finding in mine for mine in own):
                assert topic in owners, (finding, text)
        tests = {exam.name for exam, _ in disease.findings}
        plain = re.sub("血液および尿検査", "", text)
        for name in re.findall("|".join(sorted(EXAMINATIONS, key=len, reverse=True)), plain):
            assert name in tests or any(name in item for item in (*disease.advice, *disease.treatments)), (
                name,
                text,
            )


LAB_VALUE = re.compile(
    "(?<![A-Za-z])("
    + "|".join(re.escape(name) for name in sorted(LABS, key=len, reverse=True))
    + r") ([0-9.]+)((?:[^0-9、とはのへ。 ]|1\.73m2)*)"
)


def test_laboratory_values_are_in_the_range_of_the_disease_and_on_the_side_that_is_told(about):
    checked = Counter()
    for kind, topic, text in about:
        if kind not in ABOUT_A_DISEASE:
            continue
        spans = {finding.lab.name: finding for finding in DISEASES[topic].labs}
        for group, direction in re.findall(r"([^。]*?)と(高値|低値)", text):
            # what stands before an earlier と高値 belongs to that group
            for name, value, unit in LAB_VALUE.findall(re.split("と[高低]値", group)[-1]):
                finding = spans[name]
                lowest, highest = finding.span
                slack = 50 if finding.lab.decimals == -2 else 0.5 * 10**-finding.lab.decimals
                assert finding.direction == direction, text
                assert lowest - slack <= float(value) <= highest + slack, (name, value, text)
                assert unit == finding.lab.unit, (name, unit, text)
                checked[name] += 1
    assert set(checked) == set(LABS)


def test_values_after_treatment_move_towards_the_normal_range(about):
    checked = 0
    pattern = re.compile("(" + "|".join(map(re.escape, LABS)) + r")は([0-9.]+)から([0-9.]+)[^0-9]*へ(低下|上昇)")
    for _, _, text in about:
        for name, before, after, verb in pattern.findall(text):
            lowest, highest = LABS[name].normal
            if verb == "低下":
                assert highest <= float(after) < float(before), text
            else:
                assert float(before) < float(after) <= lowest, text
            checked += 1
    assert checked > 700


def test_ages_and_sexes_fit_the_disease(about):
    checked = 0
    for kind, topic, text in about:
        disease = DISEASES.get(topic)
        if kind not in ABOUT_A_DISEASE or kind in ("disease_article", "patient_questions"):
            continue
        age, sex = re.search(r"([0-9]+)歳[、の ]?((?:男|女)[性児])", text).groups()
        assert disease.ages[0] <= int(age) <= disease.ages[1], text
        assert sex.replace("児", "性") in disease.sexes, text
        smoked = re.search(r"本を([0-9]+)年間|喫煙は([0-9]+)年前", text)
        if smoked:
            assert int(smoked[1] or smoked[2]) <= int(age) - 20, text
        checked += 1
    assert checked > 2000


def test_vital_signs_are_possible_and_deviate_as_the_disease_says(about):
    checked = 0
    for kind, topic, text in about:
        if kind not in ("case_summary", "discharge_summary"):
            continue
        flags, child = DISEASES[topic].vitals, DISEASES[topic].ages[1] < 15
        first = re.search(
            r"体温([0-9.]+)℃、血圧([0-9]+)/([0-9]+)mmHg、脈拍([0-9]+)/分、呼吸数([0-9]+)/分、SpO2 ([0-9]+)%",
            text,
        )
        temperature, upper, lower, pulse, breaths, oxygen = map(float, first.groups())
        assert 0.5 * upper < lower < 0.65 * upper
        assert (temperature >= 38) == ("発熱" in flags)
        assert (temperature >= 37) == bool(flags & {"発熱", "微熱"})
        assert (upper >= 150) == ("高血圧" in flags)
        assert (upper < 100) == ("低血圧" in flags) or child
        assert (oxygen < 92) == ("低酸素" in flags)
        assert (pulse > 102) == ("頻脈" in flags)
        assert (breaths > 20) == ("頻呼吸" in flags) or child
        assert ("JCS" in text) == ("意識障害" in flags)
        checked += 1
    assert checked > 1000


def test_a_report_denies_nothing_that_it_shows(about):
    for kind, topic, text in about:
        if kind != "imaging_report":
            continue
        shown = "".join(finding for _, finding in DISEASES[topic].findings if not finding.endswith("の欠如"))
        for denied in re.findall(r"。([^。]+?)(?:は認めない|を疑う所見はない)。", text):
            assert denied[:2] not in shown, text


def test_no_patient_gets_two_drugs_of_one_class_or_a_drug_of_the_past_again(about):
    for kind, _, text in about:
        if kind not in ("case_summary", "discharge_summary"):
            continue
        given = {name for name in DRUGS if re.search(f"(?<![ァ-ヶー・]){name}（[1体適毎0-9]", text)}
        categories = [DRUGS[name].category for name in given]
        assert len(categories) == len(set(categories)), text
        assert not {"アピキサバン", "エドキサバン"} <= given
        assert not {"エナラプリル", "テルミサルタン"} <= given


def test_a_drug_article_names_only_diseases_that_the_drug_treats(about):
    for kind, topic, text in about:
        if kind == "drug_article":
            treated = {disease.name for disease in DISEASES_OF_DRUG[topic]}
            told = re.search(r"(?:適応となる疾患には(.+?)がある|。(?:[^。]*?\n)?([^。\n]+?)の治療に用いられる)", text)
            names = re.split("[、や]", told[1] or told[2])
            assert names
            assert set(names) <= treated, text


def test_a_row_that_names_an_unknown_entry_is_refused_by_name(monkeypatch):
    rows = lexicon.DISEASE_ROWS
    for old, new, message in (
        ("薬:フロセミド|", "薬:フロセミト|", "row of 慢性心不全 names the drug 'フロセミト'"),
        ("検:BNP↑|", "検:BMP↑|", "row of 慢性心不全 names the laboratory test 'BMP'"),
        ("検:BNP↑|", "検:BNP|", "write name, ↑ or ↓"),
        ("検:BNP↑|", "検:BNP↑3-9|", "not outside"),
        ("像:胸部単純X線検査=", "像:胸部X線=", "names the examination '胸部X線'"),
    ):
        monkeypatch.setattr(lexicon, "DISEASE_ROWS", rows.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            lexicon._diseases()


def test_the_lexicon_is_large_enough_and_sound():
    assert len(DISEASES) >= 60
    assert len(DRUGS) >= 60
    assert len(EXAMINATIONS) >= 30
    for disease in DISEASES.values():
        assert 0 < disease.ages[0] < disease.ages[1] < 100
        assert disease.setting in "急慢両"
        assert disease.onset in "時日週月"
        assert 1 < disease.stay[0] < disease.stay[1]
        assert len(disease.symptoms) >= 2
        assert len(disease.advice) >= 3
        assert len({*disease.symptoms, *disease.signs}) == len(disease.symptoms) + len(disease.signs)
    for lab in LABS.values():
        assert lab.normal[0] < lab.normal[1]
        assert lab.low is None or lab.low[1] < lab.normal[0]
        assert lab.high is None or lab.high[0] > lab.normal[1]

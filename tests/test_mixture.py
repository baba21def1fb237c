"""Mixture (R107): shares come out as asked, and what the text cannot give is refused with a figure that fits.

The reference for shares is counting the drawn samples; for a refusal it is doing what its message says.
"""

import re

import numpy as np
import pytest
from conftest import write_source
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st

from ncvc.config import problems_of
from ncvc.mixture import mixture_weights, repetitions

TOKENS = {"wiki": 550, "oscar": 8200, "web": 10, "textbooks": 230}  # millions, Table 1 (R6-R10)
KINDS = {"wiki": "real", "oscar": "real", "web": "real", "textbooks": "synthetic"}
REPORT = 50_331  # millions of tokens the report's training reads


def mix(tokens=TOKENS, kinds=KINDS, **rules):
    rules = {"synthetic_share": None, "repeat_cap": None, "training_tokens": REPORT} | rules
    return mixture_weights(tokens, kinds, **rules)


def test_without_rules_the_shares_are_those_of_table_1():
    shares = mix()
    assert shares["textbooks"] == pytest.approx(0.0256, abs=5e-5)  # [calc] of R17
    assert sum(shares.values()) == pytest.approx(1)


def test_a_synthetic_share_is_met_and_proportions_inside_each_kind_stay():
    shares = mix(synthetic_share=0.2)
    assert shares["textbooks"] == pytest.approx(0.2)
    assert shares["oscar"] / shares["wiki"] == pytest.approx(8200 / 550)
    assert sum(shares.values()) == pytest.approx(1)


def test_weights_that_were_set_are_the_proportions_inside_a_kind():
    shares = mix(synthetic_share=0.5, weights={"wiki": 3, "oscar": 1, "web": 1, "textbooks": 7})
    assert shares == pytest.approx({"wiki": 0.3, "oscar": 0.1, "web": 0.1, "textbooks": 0.5})
    assert mix(weights={"wiki": 1, "oscar": 1, "web": 1, "textbooks": 1})["web"] == 0.25


def test_the_reports_own_mixture_reads_everything_5_6_times():
    times = repetitions(mix(), TOKENS, training_tokens=REPORT)
    assert list(times.values()) == pytest.approx([5.60] * 4, abs=0.01)  # R130
    mix(repeat_cap=5.61)
    with pytest.raises(ValueError, match=r"data.repeat_cap=5.5 .*oscar .* would be read 5.60 times"):
        mix(repeat_cap=5.5)


def test_a_source_repeated_too_often_is_named_and_each_cure_of_the_message_works():
    with pytest.raises(ValueError, match=r"textbooks \(230 tokens, 20.00% of the samples\) would be read") as told:
        mix(synthetic_share=0.2, repeat_cap=8)
    message = str(told.value)
    assert "wiki" not in message.partition("Either")[0]
    tokens = int(re.search(r"at most ([\d,]+) tokens", message)[1].replace(",", ""))
    assert tokens == 8 * 230 * 5
    mix(synthetic_share=0.2, repeat_cap=8, training_tokens=tokens)
    with pytest.raises(ValueError, match="repeat_cap"):
        mix(synthetic_share=0.2, repeat_cap=8, training_tokens=tokens + 10)
    share = float(re.search(r"synthetic_share to at most (\d+\.\d+)", message)[1])
    mix(synthetic_share=share, repeat_cap=8)
    with pytest.raises(ValueError, match="repeat_cap"):
        mix(synthetic_share=share + 0.001, repeat_cap=8)
    cap = float(re.search(r"set data.repeat_cap=(\d+\.\d+)", message)[1])
    mix(synthetic_share=0.2, repeat_cap=cap)
    with pytest.raises(ValueError, match="repeat_cap"):
        mix(synthetic_share=0.2, repeat_cap=cap - 0.02)


def test_no_share_is_offered_where_none_can_fit():
    with pytest.raises(ValueError) as told:
        mix(synthetic_share=0.2, repeat_cap=2)  # 8,990 million tokens read twice are fewer than 50,331 million
    assert "data.synthetic_share to" not in str(told.value)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"synthetic_share": 1.5}, "data.synthetic_share=1.5 is no share"),
        ({"synthetic_share": float("nan")}, "is no share"),
        ({"synthetic_share": 0}, "leaves nothing for textbooks"),
        ({"synthetic_share": 1}, "leaves nothing for wiki, oscar, web"),
        ({"synthetic_share": 1e-5}, "textbooks 0.001% of the samples"),
        ({"repeat_cap": 0}, "data.repeat_cap=0"),
        ({"repeat_cap": float("inf")}, "data.repeat_cap=inf"),
        ({"training_tokens": 0}, "trainer.max_steps"),
        ({"weights": {"wiki": 1.0}}, r"data.sources.oscar.weight=None"),
        ({"weights": dict.fromkeys(TOKENS, 0.0)}, r"data.sources.wiki.weight=0.0"),
        ({"tokens": TOKENS | {"web": 0}}, "source web has 0 tokens"),
        ({"kinds": KINDS | {"web": "scraped"}}, r"data.sources.web.kind='scraped'.*real or synthetic"),
        ({"kinds": {"wiki": "real"}}, "must be the same"),
        ({"kinds": dict.fromkeys(KINDS, "real"), "synthetic_share": 0.1}, "no source has kind=synthetic.*share=0"),
        ({"kinds": dict.fromkeys(KINDS, "synthetic"), "synthetic_share": 0.1}, "no source has kind=real.*share=1"),
    ],
    ids=str,
)
def test_what_cannot_be_met_is_refused_by_name(rules, words):
    with pytest.raises(ValueError, match=words):
        mix(**rules)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(1, 10**10), st.sampled_from(["real", "synthetic"])), min_size=1, max_size=6),
    st.one_of(st.none(), st.floats(0, 1)),
    st.one_of(st.none(), st.floats(0.01, 100)),
    st.integers(1, 10**12),
)
def test_shares_that_are_given_keep_every_rule(sources, share, cap, training_tokens):
    tokens = {str(number): count for number, (count, _) in enumerate(sources)}
    kinds = {str(number): kind for number, (_, kind) in enumerate(sources)}
    try:
        shares = mix(tokens, kinds, synthetic_share=share, repeat_cap=cap, training_tokens=training_tokens)
    except ValueError as refusal:
        assert "data." in str(refusal)
        return
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > 0
    if share is not None:
        assert sum(shares[name] for name in tokens if kinds[name] == "synthetic") == pytest.approx(share)
    if cap is not None:
        assert all(shares[name] * training_tokens <= cap * tokens[name] * (1 + 1e-6) for name in tokens)


@pytest.fixture
def packed(tiny_run, tmp_path):
    real, invented = tmp_path / "source.jsonl", write_source(tmp_path / "invented.jsonl", documents=40)
    mixed = f"{{real: {{path: {real}}}, invented: {{path: {invented}, kind: synthetic}}}}"

    def build(*overrides: str):
        config = tiny_run("data.source=null", f"data.sources={mixed}", *overrides)
        assert problems_of(config) == []
        data = instantiate(config.data, _convert_="all")
        data.setup()
        return data

    return build


def test_training_draws_synthetic_samples_in_the_share_that_was_set(packed):
    data = packed("data.synthetic_share=0.25")
    sources, _ = data.order.indices(0, 20_000)
    assert np.bincount(sources) / 20_000 == pytest.approx([0.75, 0.25], abs=1e-3)
    assert data.identity["data.weight.invented"] == pytest.approx(0.25)


def test_a_limit_alone_changes_nothing_of_a_run(packed):
    plain, limited = packed(), packed("data.repeat_cap=1000")
    assert plain.identity == limited.identity
    assert plain.order.fingerprint == limited.order.fingerprint
    assert plain.identity["data.weight.invented"] is None


def test_a_run_that_would_repeat_too_often_is_refused_before_it_starts(packed):
    with pytest.raises(ValueError, match=r"data.repeat_cap=2.0 is passed in a training of 768,000 tokens.*max_steps"):
        packed("data.repeat_cap=2.0", "trainer.max_steps=6000")

"""Document-level quality rules for cleaned Japanese text: the first rule that a document breaks is its reason to go.

What it does: `QualityRules(settings)(text)` measures a text (lines of `cleaning`, U+2581 for a space) and holds the
figures against the settings in the order of `RULES`. A rule whose setting is None is off. Every rule has its reason
and texts that pass and fail it, which are its tests. `measure` gives the figures alone.

What it costs: 75 MB of UTF-8 per second on one core for documents of 10 kB, 30 microseconds a document for the
shortest. What it does not do: judge whether a text is true, well written or useful (see the classifier), look across
documents, or mask anything.

The rules are the usual ones (length, ratios, repetition and lines: Rae et al. 2021, section A1.1; Japanese ratios and
ellipses: Okazaki et al. 2024, section 3), with own thresholds in conf/quality, found by reading what they drop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ncvc.corpus.duplicates.minhash import without_white_space
from ncvc.corpus.quality.figures import NGRAM, SHORT_LINE, measure, tables

VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """Bounds of the figures of `measure`; None: the rule is off. Shares are of characters unless named otherwise."""

    min_characters: int | None = None
    max_characters: int | None = None
    max_unreadable: float | None = None
    min_japanese: float | None = None
    min_hiragana: float | None = None
    max_digits: float | None = None
    max_latin: float | None = None
    max_symbols: float | None = None
    max_spaces: float | None = None
    max_duplicate_lines: float | None = None
    max_repeated_ngrams: float | None = None
    max_top_ngram: float | None = None
    min_sentences: float | None = None
    max_ellipsis_lines: float | None = None
    max_bullet_lines: float | None = None
    max_short_lines: float | None = None
    max_adult_words: float | None = None

    def __post_init__(self) -> None:
        for rule in RULES:
            value = getattr(self, rule.setting)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(
                    f"quality.{rule.setting}={value!r}: must be a number from 0 up, or null for no such rule."
                )
            if rule.share and value > 1:
                raise ValueError(
                    f"quality.{rule.setting}={value!r}: is a share and cannot exceed 1; set for example "
                    f"{value / 100:g} for {value:g} percent, or null for no such rule."
                )
        low, high = self.min_characters, self.max_characters
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"quality.min_characters={low} is above quality.max_characters={high}: nothing would pass; lower it."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """Everything the verdicts depend on, for JSON: the bounds, the version and a hash of tables and words."""
        return {
            "version": VERSION,
            "sha256": _law(),
            "bounds": {one.name: getattr(self, one.name) for one in fields(self)},
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is the name of the first broken rule, None if there is none; `detail` gives its figure and bound."""

    reason: str | None
    detail: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Rule:
    """One bound: `setting` is `min_` or `max_` and the figure's name; `passes` and `fails` are its tests.

    The examples hold for the bound `example_bound`."""

    name: str
    setting: str
    reason: str
    example_bound: float
    passes: tuple[str, ...]
    fails: tuple[str, ...]
    share: bool = True

    @property
    def figure(self) -> str:
        """The figure the rule looks at."""
        return self.setting[4:]

    def broken(self, figure: float, bound: float) -> bool:
        """Whether `figure` lies outside `bound`."""
        return figure < bound if self.setting.startswith("min_") else figure > bound


_PROSE = "患者は発熱と咳を主訴に来院した。体温は38.5℃であった。胸部X線で右の下肺野に浸潤影を認め、肺炎と診断した。"
RULES: tuple[Rule, ...] = (
    Rule(
        name="too short",
        setting="min_characters",
        reason="fragments teach no context",
        example_bound=20,
        passes=(_PROSE,),
        fails=("", "続きを読む", "はい。"),
        share=False,
    ),
    Rule(
        name="too long",
        setting="max_characters",
        reason="what is longer than a book is a dump of something",
        example_bound=1000,
        passes=(_PROSE,),
        fails=("検査の結果を待つ。" * 200,),
        share=False,
    ),
    Rule(
        name="unreadable",
        setting="max_unreadable",
        reason="text read in a wrong encoding (縺ゅ, 筝, ã€, 、ウ、ホ) is no language",
        example_bound=0.2,
        passes=(
            _PROSE,
            "糸が縺れる。",
            "Ménière病とSjögren症候群は別の病気である。",
            "選択肢のア、イ、ウのうち、正しいものを一つ選ぶ。",
        ),
        fails=("縺ゅj縺後→縺", "æ\u00a0aã\u00aaãããªãã", "、ウ、ホ、ヒ、ハ、ヘ、ネ、ニ"),
    ),
    Rule(
        name="not Japanese",
        setting="min_japanese",
        reason="kana and kanji carry the language; lists of codes and foreign pages have few",
        example_bound=0.5,
        passes=(_PROSE, "心房細動▁AF"),
        fails=("The▁patient▁was▁admitted.", "0.1▁0.2▁0.3▁合計"),
    ),
    Rule(
        name="few hiragana",
        setting="min_hiragana",
        reason="Japanese sentences need particles and endings; Chinese, menus and tables of names have none",
        example_bound=0.1,
        passes=(_PROSE,),
        fails=("患者因発熱咳嗽入院治療。", "東京▁大阪▁名古屋▁福岡", "トップ▁ニュース▁スポーツ"),
    ),
    Rule(
        name="many digits",
        setting="max_digits",
        reason="tables of figures, price and score lists",
        example_bound=0.3,
        passes=(_PROSE, "血圧は120/80mmHg、脈拍は72回であった。"),
        fails=("3.2▁4.1▁5.0▁7.7▁8.1計", "12:30▁13:45▁14:00着"),
    ),
    Rule(
        name="many Latin letters",
        setting="max_latin",
        reason="program text, foreign text, lists of identifiers",
        example_bound=0.6,
        passes=(_PROSE, "抗HER2抗体のtrastuzumabを投与した。"),
        fails=("def▁main():▁return▁値", "Copyright▁Example▁Inc.▁無断転載"),
    ),
    Rule(
        name="many symbols",
        setting="max_symbols",
        reason="rulers, pictures of characters, mark-up that was not stripped",
        example_bound=0.3,
        passes=(_PROSE, "「痛い(右)」と言う。"),
        fails=("■□◆◇★☆特価★☆◇◆□■", "|-|-|+|=|表|"),
    ),
    Rule(
        name="many spaces",
        setting="max_spaces",
        reason="menus, tables and text spaced letter by letter",
        example_bound=0.2,
        passes=(_PROSE, "氏名▁山田さん"),
        fails=("ホ▁ー▁ム▁へ", "1▁A▁2▁B▁3▁の"),
    ),
    Rule(
        name="repeated lines",
        setting="max_duplicate_lines",
        reason="share of characters in lines that stood before: boilerplate, lists of comments",
        example_bound=0.3,
        passes=(_PROSE, "一行目です。\n二行目です。"),
        fails=("お買い得です。\nお買い得です。\nお買い得です。",),
    ),
    Rule(
        name="repeated passages",
        setting="max_repeated_ngrams",
        reason=f"share of {NGRAM}-character passages that stood before: templates filled in, generated text",
        example_bound=0.3,
        passes=(_PROSE,),
        fails=("今なら送料無料で即日発送いたします!" * 4,),
    ),
    Rule(
        name="one passage over and over",
        setting="max_top_ngram",
        reason=f"share of characters that the most frequent {NGRAM} characters make up: keyword spam",
        example_bound=0.25,
        passes=(_PROSE,),
        fails=(
            "格安航空券予約サイト、" * 8,
            "これは格安航空券予約サイトで、あれも格安航空券予約サイトだが、それは格安航空券予約サイトです。",
        ),
    ),
    Rule(
        name="few sentences",
        setting="min_sentences",
        reason="share of characters up to the last 。!?」… of their line, or a point at its end: menus have none",
        example_bound=0.3,
        passes=(
            _PROSE,
            "見出し\n本文はここから始まる。",
            "「痛い。」\n(笑)",
            "痛みはない。熱もない。咳は少し",
            "It is late.",
        ),
        fails=("会社概要\nお問い合わせ\nサイトマップ", "右の膝が痛い\n昨日から", "version▁3.2.1▁の▁file.txt"),
    ),
    Rule(
        name="lines cut off",
        setting="max_ellipsis_lines",
        reason="share of lines that end in …: lists of search results and previews",
        example_bound=0.3,
        passes=(_PROSE, "痛い…と言った。"),
        fails=("このたび当社は新しい…\n先日のイベントでは…\n会場へは駅から…", "詳細は…[続きを読む]\n価格は…続きを読む"),
    ),
    Rule(
        name="bullets",
        setting="max_bullet_lines",
        reason="share of lines that open with a bullet and end no sentence: menus and lists of links",
        example_bound=0.8,
        passes=(_PROSE, "持ち物は次の通り。\n・保険証\n・印鑑\n以上を窓口で出す。", "○朝は寒かった。\n○昼は晴れた。"),
        fails=("・ホーム\n・会社案内\n・採用\n・地図\n・連絡先", "-▁特価\n-▁新着\n*▁人気\n●▁予約\n■▁地図"),
    ),
    Rule(
        name="short lines",
        setting="max_short_lines",
        reason=f"share of characters in lines of at most {SHORT_LINE} that end no sentence: menus, tags, breadcrumbs",
        example_bound=0.5,
        passes=(_PROSE, "はい。\nいいえ。\n痛い!"),
        fails=("ホーム\n商品一覧\nカート\nログイン\nお問い合わせ",),
    ),
    Rule(
        name="adult words",
        setting="max_adult_words",
        reason="words of pornography per 1,000 characters, where two different ones occur; medical words do not count",
        example_bound=10,
        passes=(
            _PROSE,
            "性器の診察と乳房の触診を行い、性交痛と勃起障害について尋ねた。",
            "エロモナス感染とアナルゲジンとパチンコの話。",
        ),
        fails=("無修正動画と人妻専門デリヘルの情報。", "巨乳の痴女がエロい。"),
        share=False,
    ),
)


def _law() -> str:
    values = [tables(), [(rule.name, rule.setting) for rule in RULES]]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


class QualityRules:
    """The rules of `settings` as one callable, `QualityRules(settings)(cleaned_text) -> Verdict`."""

    def __init__(self, settings: QualitySettings) -> None:
        self.settings = settings
        self._bounds = [(rule, bound) for rule in RULES if (bound := getattr(settings, rule.setting)) is not None]

    def __call__(self, cleaned_text: str) -> Verdict:
        """The verdict on one document; its figures are those of `measure`, of one too short the characters alone."""
        figures: dict[str, float] = {}
        if len(cleaned_text) < (self.settings.min_characters or 0):  # the first rule: no need to measure the rest
            figures["characters"] = len(without_white_space(cleaned_text))
        elif self._bounds:
            figures = measure(cleaned_text)
        for rule, bound in self._bounds:
            figure = figures[rule.figure]
            if rule.broken(figure, bound):
                side = "least" if rule.setting.startswith("min_") else "most"
                detail = f"{rule.figure.replace('_', ' ')} {figure:.4g}, at {side} {bound:g}"
                return Verdict(rule.name, detail, figures)
        return Verdict(None, "", figures)

"""Japanese words of pornography and prostitution advertising, and the search for them.

`ADULT_WORDS` is an own, short list: words that such pages repeat and that ordinary prose, news, statutes and
medicine hardly use. Words of medicine (性器, 性交, 乳房, 射精, 勃起) and of both worlds (風俗, 変態, フェラ) are left
out; where a common word holds a listed one, a neighbour of the same script forbids the match: チンコ is found, パチンコ
is not.

`WordFinder` costs one pass of numpy over the text, 200 MB/s, whatever the number of words; a regular expression of
all of them reads 3 MB/s. It does no morphology: a word inside a longer word of kanji counts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

# sites, films and goods; trade; acts and bodies, in the words of such pages
_ADULT = """
アダルトビデオ アダルト動画 アダルトサイト アダルトグッズ アダルト画像 アダルト無料 無修正動画 無修正画像
無修正エロ 裏ビデオ 裏動画 素人動画 素人娘 素人ナンパ ハメ撮り エロ動画 エロ画像 エロ漫画 エロ同人 エロアニメ
エロゲー エロ本 エロサイト エロ小説 エロビデオ エロい エロすぎ ヌキどころ 抜ける動画 無料エロ 盗撮動画 AV女優
AV男優 AV動画 熟女動画 ポルノ動画

デリヘル ホテヘル ソープランド ピンサロ 風俗嬢 風俗店 風俗情報 性感マッサージ 性感エステ 回春エステ 出会い系
セフレ ヤリ友 援交 援助交際 ワリキリ 割り切り希望 逆援助 人妻専門 人妻デリ 熟女専門 テレクラ
ツーショットダイヤル 即尺 即ハメ 本番行為 イメクラ オナクラ

フェラチオ クンニ クンニリングス パイズリ 手コキ 足コキ 素股 生中出し 膣内中出し 中出しセックス 中出しSEX 顔射
口内射精 オナニー オナホ オナホール アナルセックス アナル責め アナル開発 バイブ責め 電マ 騎乗位 駅弁ファック
乱交 輪姦 スワッピング 巨根 巨乳 爆乳 美乳 デカ尻 美尻 パイパン マンコ おまんこ オマンコ ちんぽ チンポ チンコ
チンポコ 肉棒 肉便器 肉奴隷 淫乱 淫語 痴女 痴漢動画 イキまくり イキ狂い アクメ ザーメン 調教動画 ドM調教 緊縛
女体盛り 近親相姦動画 寝取られ 童貞狩り 逆レイプ レイプ動画 変態プレイ セックス動画 セックスフレンド 濡れ濡れ
ヤリマン ヤリチン hentai Hentai HENTAI porn Porn PORN xvideos XVIDEOS Xvideos pornhub Pornhub
"""
ADULT_WORDS: tuple[str, ...] = tuple(_ADULT.split())
_TABLE_BITS = 16


def _script(character: str) -> str:
    """The script whose neighbours would make a match part of a longer word; empty where words are not so bounded."""
    if "ァ" <= character <= "ヺ" or character == "ー":
        return "katakana"
    return "latin" if character.isascii() and character.isalnum() else ""


class WordFinder:
    """Occurrences of words in text: `WordFinder(words)(text)` gives them in order, longest first, none overlapping.

    A match whose end is katakana (or a Latin letter or digit) and whose neighbour is too does not count. Raises
    `ValueError` for a word of fewer than two characters.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._lengths: dict[str, tuple[int, ...]] = {}
        self._words = frozenset(words)
        for word in sorted(self._words, key=lambda word: (-len(word), word)):
            if len(word) < 2 or ord(max(word)) > 0xFFFF:
                raise ValueError(f"word {word!r}: two or more characters below U+10000 are needed; leave it out.")
            known = self._lengths.get(word[:2], ())
            self._lengths[word[:2]] = known if len(word) in known else (*known, len(word))
        self._may_begin = np.zeros(1 << _TABLE_BITS, dtype=bool)
        for pair in self._lengths:
            self._may_begin[pair_hashes(np.array([*map(ord, pair)], dtype=np.uint32)) >> (32 - _TABLE_BITS)] = True

    def __call__(self, text: str) -> list[str]:
        """The words of `text`."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        return self.words_at(text, self.places(pair_hashes(codes)).tolist())

    def places(self, pairs: np.ndarray) -> np.ndarray:
        """Where words may begin, by the `pair_hashes` of a text."""
        return np.flatnonzero(self._may_begin.take(pairs >> np.uint32(32 - _TABLE_BITS)))

    def words_at(self, text: str, places: Iterable[int]) -> list[str]:
        """The words that do begin at these ascending places."""
        found = []
        end = 0
        for start in places:
            if start >= end:
                word = self._word_at(text, start)
                if word:
                    found.append(word)
                    end = start + len(word)
        return found

    def _word_at(self, text: str, start: int) -> str:
        for length in self._lengths.get(text[start : start + 2], ()):
            word = text[start : start + length]
            if word in self._words and not _continues(text, start) and not _continues(text, start + length):
                return word
        return ""


def _continues(text: str, place: int) -> bool:
    """Whether one word of katakana or Latin letters goes on across `place`."""
    if not 0 < place < len(text):
        return False
    script = _script(text[place])
    return script != "" and script == _script(text[place - 1])


def pair_hashes(codes: np.ndarray) -> np.ndarray:
    """(characters - 1,) of uint32: one mixed hash per two characters that follow each other; the high bits are best."""
    hashes = codes[:-1] * np.uint32(0x9E3779B1)
    hashes += codes[1:]
    hashes *= np.uint32(0x85EBCA6B)
    return hashes

"""Figures of configurations, rules and products: ``python -m ncvc.bench COMMAND key=value ... [json=true]``.

``plan experiment=...``                  parameters, memory per GPU, FLOPs per token, days at a given MFU; nothing runs
``privacy file=...``                     recall and over-masking per type on texts with marked personal data
``tokenizer tokenizer.directory=...``    characters per token, fertility on medical names, beside two baselines
``lexicon lexicon=...``                  share of its names that stay one word in context, per analyser
``seen certificate=... file=...``        whether texts were in a corpus, by its certificate
"""

import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run
from ncvc.config import check


def plan(config: DictConfig) -> None:
    """Cost of a training configuration."""
    check(config)
    from hydra.utils import instantiate

    from ncvc.planning import plan, plan_as_table, run_facts

    chosen, facts = config.bench, run_facts(_values(config))
    figures = plan(instantiate(config.model), run=facts, gpu=chosen.gpu, utilization=chosen.utilization)
    _print(figures, plan_as_table(figures), {"json": chosen.json})


def privacy(config: DictConfig) -> None:
    """Recall and over-masking of the rules of ``privacy``, beside HojiChar's masker where it is installed."""
    from ncvc.corpus.personal.masking import PrivacySettings
    from ncvc.corpus.personal.report import measure
    from ncvc.settings import settings_from

    values = _values(config)
    settings = settings_from(PrivacySettings, values["privacy"], path="privacy")
    report = measure(values["file"], settings=settings, peers=values["peers"])
    _print(report.as_dict(), report.as_table(), values)


def tokenizer(config: DictConfig) -> None:
    """Measures of a tokenizer's folder on the text of ``file``, and on the names of ``lexicon``."""
    from ncvc.analyzers.lexicon_report import names_by_kind
    from ncvc.corpus.reading.readers import read_documents
    from ncvc.tokenizer import Tokenizer
    from ncvc.tokenizer_report import report_on

    values = _values(config)
    found = read_documents(Path(values["file"]), text_field=values["text_field"], on_problem=print, setting="file")
    chosen = {key: values[key] for key in ("peers", "sample_megabytes")}
    loaded = Tokenizer.load(Path(values["tokenizer"]["directory"]).expanduser())
    report = report_on(loaded, (document.text for document in found), names=names_by_kind(values["lexicon"]), **chosen)
    _print(report.as_dict(), report.as_table(), values)


def lexicon(config: DictConfig) -> None:
    """Names of ``lexicon`` that stay one word, for each of ``analyzers``, without and with a user dictionary."""
    from ncvc.analyzers.lexicon_report import as_table, report_on_lexicon

    values = _values(config)
    chosen = {"analyzers": values["analyzers"], "home": Path(values["home"]).expanduser()}
    records = report_on_lexicon(values["lexicon"], **chosen)
    _print(records, as_table(records), values)


def seen(config: DictConfig) -> None:
    """Whether ``text``, or each item of ``file``, was in the corpus of ``certificate``."""
    from ncvc.corpus.contamination.seen_report import ask

    values = _values(config)
    report = ask(**{key: values[key] for key in ("certificate", "text", "file", "fields")})
    _print(report.as_dict(), report.as_table(limit=values["limit"]), values)


def _values(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def _print(figures: Any, table: str, values: Any) -> None:
    print(json.dumps(figures, indent=2, ensure_ascii=False) if values["json"] else table)


COMMANDS = {"plan": plan, "privacy": privacy, "tokenizer": tokenizer, "lexicon": lexicon, "seen": seen}


def main(arguments: list[str]) -> None:
    """Turn ``COMMAND key=value ...`` into Hydra's arguments."""
    command = "plan" if arguments and arguments[0].startswith("-") else (arguments[0] if arguments else "nothing")
    if command not in COMMANDS:
        raise SystemExit(f"ncvc.bench: {command!r} is no command; use one of: {', '.join(COMMANDS)}.")
    root = "bench" if command == "plan" else f"bench_{command}"
    run(COMMANDS[command], config_name=root, arguments=arguments if arguments[0].startswith("-") else arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])

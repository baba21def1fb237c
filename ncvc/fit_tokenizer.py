"""Train the tokenizer alone: ``python -m ncvc.fit_tokenizer sources.wiki.path=... sources.medical.path=...``.

Cleans and segments the sources, trains the Unigram vocabulary on them (R31-R35) and leaves its folder under
``home/tokenizers``, which ``tokenizer.directory=...`` of every other program takes. The same text and settings give the
same folder: nothing is trained twice. Its measures beside baselines: ``python -m ncvc.bench tokenizer``.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run


def fit_tokenizer(config: DictConfig) -> Path:
    """Hydra's entry point; returns the tokenizer's folder."""
    from ncvc.preparation import Source, prepare_tokenizer
    from ncvc.settings import settings_from
    from ncvc.tokenizer import Tokenizer
    from ncvc.tokenizer_report import report_on
    from ncvc.tokenizer_training import Sample

    values: Any = OmegaConf.to_container(config, resolve=True)
    home = Path(values["home"]).expanduser()
    made_with = {key: values[key] for key in ("cleaning", "analyzer")}
    if values["curated"] is not None:
        from ncvc.curation.corpus import open_curated

        curated = open_curated(values["curated"], home=home)
        sources, made_with = curated.sources(), made_with | curated.settings
    else:
        sources = [
            settings_from(Source, {"name": name, **settings}, path=f"sources.{name}")
            for name, settings in _given(values["sources"]).items()
        ]
    directory, stores = prepare_tokenizer(
        sources,
        home=home,
        tokenizer={**values["tokenizer"], "directory": None},
        text_field=values["text_field"],
        workers=values["workers"] or len(os.sched_getaffinity(0)),
        **{key: made_with[key] for key in ("cleaning", "analyzer")},
    )
    tokenizer = Tokenizer.load(directory)
    megabytes, facts = values["measured_megabytes"], tokenizer.training
    texts = (words.replace(" ", "") for words in Sample(stores, megabytes=megabytes))
    print(report_on(tokenizer, texts, peers=False, sample_megabytes=megabytes).as_table())
    print(
        f"learned from     {facts['texts']:,} documents, {facts['characters']:,} characters\n"
        f"tokenizer        {directory}\n"
        f"to use it        tokenizer.directory={directory}\n"
        f"to measure it    python -m ncvc.bench tokenizer tokenizer.directory={directory} file=TEXT"
    )
    return directory


def _given(sources: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The sources with a path; ``ValueError`` with the cure when there is none."""
    named = sources or {}
    wrong = [name for name, settings in named.items() if not isinstance(settings, Mapping)]
    if wrong:
        raise ValueError(f"sources.{wrong[0]} must be a group of settings; set sources.{wrong[0]}.path=TEXT")
    given = {name: dict(settings) for name, settings in named.items() if settings.get("path") is not None}
    if not given:
        raise ValueError(
            "no source is set: name the text to learn from, for example sources.wiki.path=TEXT "
            "sources.medical.path=TEXT (R35: Wikipedia and the medical sets), or curated=FOLDER (of ncvc.curate)"
        )
    return given


if __name__ == "__main__":
    run(fit_tokenizer, config_name="fit_tokenizer")

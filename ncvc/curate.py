"""From raw corpora to packed tokens with a data card: ``python -m ncvc.curate corpus=demo_shared``.

Reads, masks, cleans, filters, deduplicates, segments and decontaminates the sources of ``corpus`` (see
``ncvc/curation/pipeline.py``), fits the tokenizer, packs the tokens and writes the card. Run again after any
interruption, the same command goes on; finished, it only tells where everything lies.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run


def curate(config: DictConfig) -> Path:
    """Hydra's entry point; returns the finished corpus' folder."""
    from ncvc.analyzers.user_dictionary import with_lexicon
    from ncvc.curation.pipeline import curate_corpus
    from ncvc.curation.products import pack_curated
    from ncvc.curation.settings import curation_from, executor_from
    from ncvc.curation.statistics import statistics_file, statistics_table

    values: Any = OmegaConf.to_container(config, resolve=True)
    home = Path(values["home"]).expanduser()
    values["analyzer"], told = with_lexicon(values["analyzer"], values["lexicon"], home=home)
    settings, executor = curation_from(values), executor_from(values["executor"])
    print(told, end="\n" if told else "", flush=True)
    folder = curate_corpus(settings, executor=executor, home=home)
    if statistics_file(folder).is_file():
        print(statistics_table(folder))
    print(f"curated corpus   {folder}", flush=True)
    if values["pack"]:
        print(pack_curated(folder, home=home, values=values, workers=executor.num_workers))
    return folder


if __name__ == "__main__":
    run(curate, config_name="curate")

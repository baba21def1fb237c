"""Train a quality classifier from a teacher's labels: ``python -m ncvc.judge source=FOLDER vectors.model=FOLDER``.

Chooses a sample of the source, asks the teacher about every text of it, makes hidden vectors, trains the forest, and
reports what each threshold would remove. Run again after any interruption, the same command goes on with the labels
that are there. Writes ``labels.jsonl``, ``classifier/`` (the directory that a curation reads) and ``report.*``.
A reconstruction of what the report's Discussion tells (R8, R102-R104).
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run


def judge(config: DictConfig) -> dict[str, Any]:
    """Hydra's entry point; returns the report."""
    from ncvc.corpus.quality.classifier import ForestSettings, VectorSettings
    from ncvc.corpus.quality.classifier_report import verdict
    from ncvc.corpus.quality.label_log import label_sample
    from ncvc.corpus.quality.labels import LabelSettings
    from ncvc.corpus.quality.training import train_and_report
    from ncvc.model.document_vectors import CHARACTERS_PER_TOKEN, open_vectors
    from ncvc.settings import settings_from
    from ncvc.teachers.in_process import open_teacher
    from ncvc.teachers.teacher import TeacherSettings

    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for name, path in (("source", "a file or folder of cleaned text"), ("vectors.model", "a model directory")):
        if OmegaConf.select(config, name) is None:
            raise ValueError(f"{name} is not set: name {path}, {name}=...")
    labels = settings_from(LabelSettings, plain["labels"], path="labels")
    forest = settings_from(ForestSettings, plain["forest"], path="forest")
    asked = settings_from(TeacherSettings, plain["teacher"], path="teacher")
    second = plain["second_teacher"]
    second = None if second is None else settings_from(TeacherSettings, second, path="second_teacher")
    vectors = open_vectors(settings_from(VectorSettings, plain["vectors"], path="vectors"))
    output = Path(plain["output"]).expanduser()

    keep = max(labels.max_characters, vectors.settings.max_tokens * CHARACTERS_PER_TOKEN)
    sample = sample_of(plain, size=labels.documents, seed=labels.seed, keep_characters=keep, path=output)
    teacher, progress = open_teacher(asked), plain["progress"]
    labelling = label_sample(
        sample.documents, teacher=teacher, settings=labels, path=output / "labels.jsonl", progress=progress
    )
    again = {}
    if labels.repeated_documents:
        other = teacher if second is None else open_teacher(second)
        chosen = sample.documents[: labels.repeated_documents]
        place = output / f"labels_again_{other.name}.jsonl"
        again[f"{other.name} asked again" if second is None else f"second teacher {other.name}"] = label_sample(
            chosen, teacher=other, settings=labels, path=place, repetition=1, progress=progress
        )
    record = train_and_report(
        sample,
        labelling=labelling,
        again=again,
        vectors=vectors,
        settings=forest,
        output=output,
        workers=plain["workers"],
        progress=progress,
    )
    print("\n".join(verdict(record["evaluation"])))
    print(f"classifier  {output / 'classifier'}\nreport      {output / 'report.md'}")
    return record


def sample_of(plain: dict[str, Any], *, size: int, seed: int, keep_characters: int, path: Path) -> Any:
    """The sample of the source, cleaned; chosen once, then read from the output folder while the source is the same."""
    from ncvc.corpus.cleaning import Cleaner
    from ncvc.corpus.quality.labels import choose_sample, cleaned_sample, read_sample, write_sample
    from ncvc.corpus.reading.readers import read_documents
    from ncvc.corpus.reading.sources import find_source_files

    source, cleaner = Path(plain["source"]).expanduser(), Cleaner(plain["cleaning"])
    reading: dict[str, Any] = {"text_field": plain["text_field"], "layout": plain["layout"], "setting": "source"}
    files, _ = find_source_files(source, setting="source")
    state = [[file.name, file.num_bytes, file.path.stat().st_mtime_ns] for file in files]
    recipe = {"files": state, "size": size, "seed": seed, "keep": keep_characters, "cleaning": cleaner.identity}
    recipe |= reading
    sample = read_sample(path / "sample.jsonl", recipe=recipe)
    if sample is None:
        problems: list[Any] = []
        documents = read_documents(source, on_problem=problems.append, **reading)
        sample = choose_sample(documents, size=size, seed=seed, keep_characters=2 * keep_characters)
        sample = cleaned_sample(sample, cleaner=cleaner, keep_characters=keep_characters)
        write_sample(path / "sample.jsonl", sample, recipe=recipe)
        if problems:
            print(f"note: {len(problems):,} rows or files could not be read, the first: {problems[0]}")
    print(f"sample      {len(sample.documents):,} of {sample.seen:,} documents")
    return sample


if __name__ == "__main__":
    run(judge, config_name="judge")

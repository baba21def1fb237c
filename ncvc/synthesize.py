"""Let teachers write textbooks or exercises: ``python -m ncvc.synthesize topics.file=FILE synthesis=exercise``.

Topics x prompts x teachers, every answer checked, rejects kept with their reasons. A start goes on where the last one
stopped; the output (``output``, with ``documents/`` as a source for curation and training) is written when every
teacher of the plan has answered. Prints progress, and at the end the counts per teacher and reason.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run
from ncvc.settings import settings_from


def synthesize(config: DictConfig) -> dict[str, Any] | None:
    """Hydra's entry point; returns the manifest, or None while other teachers of the plan have not answered."""
    from ncvc.corpus.synthesis import run as synthesis_run
    from ncvc.corpus.synthesis.plan import SynthesisPlan, SynthesisSettings, choose_topics
    from ncvc.teachers.in_process import open_teacher

    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    general = plain["synthesis"].pop("general_topics")
    settings = settings_from(SynthesisSettings, plain["synthesis"], path="synthesis")
    teachers = teachers_of(plain)
    topics, left_out = choose_topics(
        entries_of(plain, general=general), settings=settings, limits=plain["topics"]["limits"]
    )
    for reason, count in left_out.items():
        print(f"note: {count:,} topics left out: {reason}")
    plan = SynthesisPlan(topics, settings=settings, teachers=list(teachers))
    asked = plain["ask"] if plain["ask"] is not None else list(teachers)
    if unknown := sorted(set(asked) - set(teachers)):
        raise ValueError(f"ask={asked}: {', '.join(unknown)} is no teacher of this run ({', '.join(teachers)}).")
    output = Path(plain["output"]).expanduser()
    print(f"{len(topics):,} topics, {sum(plan.size(name) for name in teachers):,} documents wanted of {len(teachers)} "
          f"teacher(s); answers are kept in {output}.answers")  # fmt: skip
    manifest = synthesis_run.synthesize(
        plan,
        teachers={name: partial(open_teacher, teachers[name]) for name in asked},
        output=output,
        settings=settings_from(synthesis_run.RunSettings, plain["run"], path="run"),
        tell=partial(print, flush=True),
    )
    if manifest is not None:
        print(f"documents  {output / 'documents'}\nrejects    {output / 'rejects.jsonl'}")
        if not any(entry["accepted"] for entry in manifest["teachers"].values()):
            raise ValueError(
                f"not one document was kept; read why in {output / 'rejects.jsonl'}, then set another output."
            )
    return manifest


def teachers_of(plain: dict[str, Any]) -> dict[str, Any]:
    """The settings of ``teachers``, or of the one ``teacher``, by their names."""
    from ncvc.teachers.teacher import TeacherSettings

    groups = {f"teachers.{key}": values for key, values in (plain["teachers"] or {}).items() if values is not None}
    if not groups and plain["teacher"] is not None:
        groups = {"teacher": plain["teacher"]}
    found = [settings_from(TeacherSettings, values, path=path) for path, values in groups.items()]
    names = [settings.name for settings in found]
    if not found or len(set(names)) < len(names):
        raise ValueError(f"teachers {names}: at least one is needed, and each must have a name of its own.")
    return dict(zip(names, found, strict=True))


def entries_of(plain: dict[str, Any], *, general: list[str]) -> Iterator[Any]:
    """The topics of the file, the names of the lexicon, the general topics; what cannot be read is told."""
    from ncvc.corpus.synthesis.plan import GENERAL, Topic, read_topics

    topics = plain["topics"]
    if topics["file"] is not None:
        entries, problems = read_topics(Path(topics["file"]).expanduser(), kind=topics["kind"])
        for problem in problems[:20]:
            print(f"note: topics.file: {problem}")
        if len(problems) > 20:
            print(f"note: topics.file: {len(problems) - 20:,} more lines cannot be read")
        yield from entries
    if plain["lexicon"] is not None:
        from ncvc.analyzers.lexicon import LexiconSettings, read_lexicon

        lexicon = read_lexicon(settings_from(LexiconSettings, plain["lexicon"], path="lexicon"))
        for name, counts in lexicon.counts.items():
            print(f"lexicon {name}: {', '.join(f'{reason} {count:,}' for reason, count in counts.items())}")
        yield from lexicon.entries
    if topics["general"]:
        yield from (Topic(surface, GENERAL) for surface in general)


if __name__ == "__main__":
    run(synthesize, config_name="synthesize")

"""A model behind a local OpenAI-compatible server with a chat page: ``python -m ncvc.serve model=last port=8000``.

``model`` is a model directory, a run's folder, or ``last``. Reached from this machine only, unless ``host`` says
otherwise and the environment variable NCVC_TOKEN holds a secret. Ctrl-C ends it.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run

_OF_THE_PROGRAM = ("home", "model", "device", "dtype", "log_prompts")


def serve(config: DictConfig, *, named: str | None = None) -> None:
    """Hydra's entry point: load the model (``named``, or as set) and serve it until Ctrl-C or SIGTERM."""
    from ncvc.serving.server import LocalServer, check_packages, listen
    from ncvc.serving.settings import server_settings

    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    home, model, device, dtype, log_prompts = (values.pop(name) for name in _OF_THE_PROGRAM)
    if not isinstance(log_prompts, bool):
        raise ValueError(f"log_prompts={log_prompts!r}: must be true or false.")
    if not (model := model if named is None else named):
        raise ValueError("model is not set: name a model directory, a run's folder, or last.")
    token = values.pop("token")
    prompts = Path(home).expanduser() / "serve" / "prompts.jsonl" if log_prompts else None
    settings = server_settings(
        {**values, "token": None if token is None else str(token), "prompts_file": prompts}  # type: ignore[dict-item]
    )
    check_packages()
    listener = listen(settings)  # a busy port is told now and not when the model is loaded
    try:
        from ncvc.model.assistant import Assistant, find_model

        directory = find_model(str(model), home=Path(home))
        assistant = Assistant.load(directory, device=str(device), dtype=str(dtype))
        server = LocalServer(assistant, settings=settings, listener=listener, log=lambda line: print(line, flush=True))
        kind = "chat and text" if assistant.can_chat else "text only: a base model, not tuned to chat"
        print(
            f"{assistant.name} ({kind})  {directory}\npage    {server.address}/\nOpenAI  {server.address}/v1\n"
            f"limits  context {assistant.context_length} tokens, answers {settings.max_tokens}, "
            f"{settings.max_batch} at once, {settings.max_waiting} waiting; "
            f"{'token needed' if settings.token else 'no token needed'}"
            + (f"; prompts are recorded in {prompts}" if prompts else "")
            + "\nCtrl-C ends the server.",
            flush=True,
        )
        if not settings.is_loopback:
            print("note: this is plain HTTP; put a proxy with TLS in front where others share the network.", flush=True)
        server.run()
        print("stopped.", flush=True)
    except KeyboardInterrupt:
        print("stopped before it served.", file=sys.stderr)
        raise SystemExit(130) from None


def main(arguments: list[str]) -> None:
    """Keep ``model=FOLDER`` from Hydra, for whom ``model`` is a group of ``conf/``, and start."""
    named = [text.removeprefix("model=") for text in arguments if text.startswith("model=")]
    rest = [text for text in arguments if not text.startswith("model=")]

    def task(config: DictConfig) -> None:
        serve(config, named=named[-1] if named else None)

    run(task, config_name="serve", arguments=rest)


if __name__ == "__main__":
    main(sys.argv[1:])

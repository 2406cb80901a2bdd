"""`parlance serve`: models as an HTTP server in the form of the OpenAI API."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from parlance.cli import options

ENVIRONMENT_KEYS = "PARLANCE_API_KEYS"
"""Environment variable of API keys, separated by commas."""


def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Checkpoint folders or run directories; NAME=FOLDER gives a name."),
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0: any that is free.")] = 8000,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 127.0.0.1 is this machine alone.")
    ] = "127.0.0.1",
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="FILE", help=f"API keys, a YAML list; also taken from {ENVIRONMENT_KEYS}."),
    ] = None,
    no_keys: Annotated[
        bool, typer.Option("--no-keys", help="Let anybody on the network call, where --host is not this machine.")
    ] = False,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, max=4096, help="Most texts that a model writes at once; others wait.")
    ] = 64,
    cache: Annotated[
        float | None,
        typer.Option("--cache", min=0.001, metavar="GB", help="Memory for the texts of a model; none: as is sensible."),
    ] = None,
    weights: Annotated[
        Literal["auto", "float32", "bfloat16", "int8", "int4"],
        typer.Option("--weights", help="What a processor keeps weights in; auto: as --precision says."),
    ] = "auto",
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    settings: options.Set = None,
) -> None:
    """Answer requests of the OpenAI API: chat, completions, embeddings. Ctrl-C ends it, after the answers in work.

    Example: parlance serve runs/demo --port 8000

    Example: parlance serve small=runs/a large=runs/b --host 0.0.0.0 --keys keys.yaml
    """
    from parlance.core.errors import UserError

    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError("the server needs fastapi and uvicorn: pip install 'parlance[serve]'") from error
    import logging
    import os

    from parlance.cli import inputs
    from parlance.core.config import override
    from parlance.serving.app import make_app
    from parlance.serving.config import ServingConfig
    from parlance.serving.hosted import close_models, host_models
    from parlance.serving.keys import read_keys
    from parlance.serving.server import bound_socket, is_loopback, loopback_hosts, run_server

    config = override(ServingConfig(), settings or [])
    found = read_keys(keys, os.environ.get(ENVIRONMENT_KEYS))
    if found is None and not is_loopback(host) and not no_keys:
        raise UserError(
            f"--host {host} lets other machines call, and there are no API keys: give --keys FILE, or --no-keys to let "
            "anybody in"
        )
    inputs.torch_device(device)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    log = logging.getLogger("parlance.serving")
    listener = bound_socket(host, port)
    opened = host_models(
        models,
        device=device,
        precision=precision,
        weights=weights,
        most_running=parallel,
        cache_bytes=None if cache is None else int(cache * 1e9),
        opened=log.info,
    )
    try:
        app = make_app(
            opened, config, keys=found, hosts=loopback_hosts(host) if found is None and is_loopback(host) else None
        )
        name, bound = listener.getsockname()[:2]
        log.info("http://%s:%d answers for %s", f"[{name}]" if ":" in name else name, bound, ", ".join(opened))
        run_server(app, listener, config)
    finally:
        close_models(opened, drain=False)

"""The application on a socket: one process, one event loop, one thread for each model.

    app = make_app(models, config, keys=None, hosts=loopback_hosts("127.0.0.1"))
    run_server(app, bound_socket("127.0.0.1", 8000), config)

SIGTERM and Ctrl-C end it: no new connection is taken, streams go on for `drain_seconds`, then the rest is cut.
"""

import ipaddress
import socket

import uvicorn

from parlance.core.errors import UserError
from parlance.core.interrupts import stop_requests
from parlance.serving.config import ServingConfig
from parlance.serving.connections import guarded_connections
from parlance.serving.gate import Gate

BACKLOG = 2048
"""Connections that may wait to be taken."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can call an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def loopback_hosts(host: str) -> frozenset[str]:
    """The names under which a server on this machine alone may be addressed."""
    return frozenset({"localhost", "127.0.0.1", "::1", host})


def make_server(app: Gate, config: ServingConfig) -> uvicorn.Server:
    """uvicorn with our limits; `run(sockets=[...])` blocks, `should_exit = True` ends it."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=guarded_connections(config),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=max(1, int(config.header_seconds)),
            timeout_graceful_shutdown=config.drain_seconds,
        )
    )


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: any. Raises UserError where it cannot."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(BACKLOG)  # from now on calls wait, and none is refused while models are opened
    except OSError as error:
        raise UserError(f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port") from error
    return opened


def run_server(app: Gate, listener: socket.socket, config: ServingConfig) -> None:
    """Answer until the process is asked to stop, and then until the answers in work are given."""
    with stop_requests():  # uvicorn passes a signal on when it has done its part: nothing shall die of it then
        make_server(app, config).run(sockets=[listener])

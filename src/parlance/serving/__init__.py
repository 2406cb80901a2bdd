"""Models -> HTTP, in the form of the OpenAI API. Needs the extra `serve` (fastapi, uvicorn).

- `app`: `make_app(models, ServingConfig(), keys=None, hosts=None)`: the application
- `server`: `run_server(app, bound_socket(host, port), config)`: the application on a socket
- `hosted`: `host_models(["runs/demo", "small=runs/other"])`: models opened, with their engines
- `keys`: `read_keys(path)`: who may call, which models, how often
- `config`: `ServingConfig`: every limit
"""

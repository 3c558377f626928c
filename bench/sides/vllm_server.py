"""One side of http_load.py: the server of vLLM itself, on an engine that is started and runs as morfi's."""

from __future__ import annotations

import json
import sys
from typing import Any

from morfi.device import is_gpu
from morfi.serve.settings import prepare_process


def main(given: dict[str, Any]) -> None:
    """Serves with these arguments of vLLM until a signal ends it."""
    prepare_process(gpu=is_gpu(), verbose=False)
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    import morfi.serve.worker  # noqa: F401 - registers the norms that the settings name

    args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    for name, value in given.items():
        setattr(args, name, value)
    uvloop.run(run_server(args))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

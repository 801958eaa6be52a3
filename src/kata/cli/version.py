"""`kata version`: what is installed, in the form of `kata-runtime version`."""

from __future__ import annotations

import json

import typer

from kata.cli.options import AsJson
from kata.cli.render import ExitCode
from kata.oci.state import OCI_VERSION
from kata.version import VERSION


def command(context: typer.Context, as_json: AsJson = False) -> int:
    """Print the version of this program and of the OCI specification that it implements."""
    if as_json:
        print(json.dumps({"version": VERSION, "oci": OCI_VERSION}))
    else:
        print(f"{context.find_root().info_name}  : {VERSION}\n   OCI specs: {OCI_VERSION}")
    return ExitCode.OK

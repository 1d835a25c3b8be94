"""`med-sslal query`: a query into a project of Label Studio, and its tasks out again."""

import os
import sys
from argparse import Namespace
from pathlib import Path
from shlex import quote

from med_sslal.cli.called import called
from med_sslal.practice.label_studio_api import LabelStudio, pull_tasks, push_query
from med_sslal.practice.query_folder import read_query
from med_sslal.utils.errors import UserError
from med_sslal.utils.util import write_json

TOKEN = "LABEL_STUDIO_TOKEN"


def run(args: Namespace) -> int:
    """Push or pull; returns the exit code."""
    query, path = read_query(args.query), quote(str(args.query))
    token = args.token or os.environ.get(TOKEN)
    if not token:
        raise UserError(f"name a token of Label Studio, with --token or in {TOKEN}")
    server = LabelStudio(args.url, token)
    named = "" if args.project is None else f" --project {args.project}"
    if args.action == "push":
        number = push_query(server, args.query, args.project, args.local_root)
        sys.stdout.write(
            f"{len(query.images)} images are in {server.url}/projects/{number}; when they are "
            f"labelled:\n  {called('query')} pull {path} --url {server.url}{named}\n"
        )
        return 0
    out = args.out or Path(f"answers_{query.query_id}.json")
    tasks = pull_tasks(server, args.query, args.project)
    write_json(out, tasks)
    sys.stdout.write(
        f"{len(tasks)} tasks are in {out}; next:\n  {called('import')} {path} {quote(str(out))}\n"
    )
    return 0

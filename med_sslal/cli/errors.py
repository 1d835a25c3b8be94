"""What ends a program: exit codes and the one sentence for what the user can mend."""

import errno
import logging
import os
import sys
from collections.abc import Callable

from med_sslal.utils.errors import UserError

# Full or read-only disks and folders of others: whatever was to be written, the user can mend it.
_DISK = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
}


def run_reported(main: Callable[[], int]) -> int:
    """Run `main` and turn the errors a user can mend into a sentence and exit code 2.

    Returns:
        What `main` returned, or 2. Anything else that is raised is a bug: it shows its traceback
        and Python exits with 1.
    """
    try:
        return main()
    except UserError as error:
        logging.getLogger("med_sslal").debug("ended by an error", exc_info=True)
        # Not `error (rank 0)`: that is the run itself, whatever torchrun has started besides.
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(f"error{'' if rank == '0' else f' (rank {rank})'}: {error}\n")
        return 2
    except BrokenPipeError:
        # The reader of our output (head, less) has left; point stdout away so that the
        # interpreter's last flush is silent too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _DISK:
            raise
        logging.getLogger("med_sslal").debug("ended by an error", exc_info=True)
        where = f" {error.filename}" if error.filename else ""
        sys.stderr.write(f"error: cannot read or write{where}: {error.strerror}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped at once; the last checkpoint on disk is where --resume goes on\n")
        return 130

"""What ends a program: exit codes and the one sentence for what the user can mend."""

import errno
import logging
import os
import sys
from collections.abc import Callable

from med_sslal.utils.errors import UserError
from med_sslal.utils.interrupt import Interrupted

# Full or read-only disks and folders of others: whatever was to be written, the user can mend it.
_DISK = {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EPERM, errno.EROFS}


def run_reported(main: Callable[[], int]) -> int:
    """Run `main` and turn the errors a user can mend into a sentence and exit code 2.

    Anything else that is raised is a bug: it shows its traceback and Python exits with 1. After a
    signal the code is 128 and its number. Of the processes of torchrun, only the first one to end
    in an error tells of it.
    """
    try:
        return main()
    except BrokenPipeError:
        # The reader of our output (head, less) has left; point stdout away so that the
        # interpreter's last flush is silent too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("stopped at once; the last checkpoint on disk is where --resume goes on\n")
        return 130
    except Interrupted as request:
        return request.exit_code
    except Exception as error:
        tells, sentence = True, _sentence(error)
        if "RANK" in os.environ:
            # Here, because torch takes seconds to load.
            from med_sslal.utils.distributed import is_first_to_fail

            tells = is_first_to_fail()
        if sentence is None:
            raise
        logging.getLogger("med_sslal").debug("ended by an error", exc_info=True)
        if tells:
            rank = os.environ.get("RANK", "0")
            # Rank 0 is the run itself, whatever torchrun has started besides.
            sys.stderr.write(f"error{'' if rank == '0' else f' (rank {rank})'}: {sentence}\n")
        return 2


def _sentence(error: Exception) -> str | None:
    """What to tell of an error that the user can mend; None of a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f" {error.filename}" if error.filename else ""
        return f"cannot read or write{where}: {error.strerror}"
    return None

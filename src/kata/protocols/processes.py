"""This project's own RPCs on processes, for what Kata's protocol cannot ask. Another agent answers with UNIMPLEMENTED.

The request is a WaitProcessRequest, which names a process; the response is empty.
"""

SERVICE = "kata.Processes"
#: Answered when all that the process's streams held at the time of the call has been read.
DRAINED = "Drained"
#: Closes the reading ends: who still writes gets SIGPIPE.
RELEASE = "Release"

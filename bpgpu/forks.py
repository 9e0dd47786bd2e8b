"""Work that must not be cut in two by a fork of the process: its child would wait for locks of threads it lacks."""

import os
import threading

# Held while modules are imported or kernels compiled, by import's locks and LLVM's: a fork waits until that is done.
whole = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=whole.acquire, after_in_parent=whole.release, after_in_child=whole.release)

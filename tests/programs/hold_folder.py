"""Lock a run folder, as a run in it does, until killed.  python hold_folder.py RUN"""

import sys
import time
from pathlib import Path

from emanet.run.folder import RunFolder

folder = RunFolder(Path(sys.argv[1]))
folder.lock()
print("held", flush=True)
time.sleep(60)

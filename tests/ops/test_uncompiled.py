import subprocess
import sys

import torch

from emanet.ops.uncompiled import uncompiled


def test_compiled_code_calls_it_as_it_is():
    seen, graphs = [], []

    @uncompiled
    def inside(x):
        """Says so."""
        seen.append(torch.compiler.is_compiling())
        return x + len(seen)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    run = torch.compile(lambda x: inside(x * 2) * 3, backend=backend)
    for count in (1, 2, 3):
        torch.testing.assert_close(run(torch.ones(3)), torch.full((3,), 3.0 * (2 + count)))
    assert seen == [False] * 3 and len(graphs) == 2, "one graph before it and one after, compiled once"
    assert inside.__doc__ == "Says so."


def test_the_compiler_is_imported_when_something_is_compiled():
    program = "import sys, torch; from emanet.ops import upsample; assert 'torch._dynamo' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

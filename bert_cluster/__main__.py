"""`python -m bert_cluster` is the command `bert-cluster`."""

import sys

from bert_cluster.cli import main

sys.exit(main())

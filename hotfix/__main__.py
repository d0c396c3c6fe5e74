"""`python -m hotfix`, as `accelerate launch -m hotfix` asks for it."""

from hotfix.cli import main

main()

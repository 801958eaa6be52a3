"""`python -m kata.agent`: the agent as an ordinary process."""

from kata.agent.main import main

main()

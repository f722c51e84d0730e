"""The ranks come together: who came, whether they belong here, what their nodes can do, and who is missing later."""

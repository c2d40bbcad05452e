"""Conformance test suites for plug-ins.

Each module has a base class for one kind of plug-in. A test module inherits from it, says which
plug-in is meant, and pytest runs the inherited tests. They need pytest.
"""

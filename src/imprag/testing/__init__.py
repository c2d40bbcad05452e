"""Conformance suites: pytest classes that a plug-in's tests inherit. They need pytest."""

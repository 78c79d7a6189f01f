"""The version of the distribution. The build, both packages and the headers of files take it from here."""

__version__ = "0.1.0"

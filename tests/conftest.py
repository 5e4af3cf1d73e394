"""Fixtures that several files of tests share: one server for all of them."""

from tests.s3_server import s3, s3_server

__all__ = ["s3", "s3_server"]

from tests.snapshots_fixtures import box, objects, s3_on_loopback

__all__ = ["box", "objects", "s3_on_loopback"]

from tests.tracking.conftest import empty_database, project

__all__ = ["empty_database", "project"]

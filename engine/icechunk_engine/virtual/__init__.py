"""Virtual chunks: bytes in files that do not belong to the repository.

============================  =================================================================
:mod:`.virtual_refs`          chunk references from the arguments of the store's methods
:mod:`.containers`            canonical locations, and the container of each location
:mod:`.authorisation`         who may read through a container, and with which credential
:mod:`.container_endpoints`   where the options of a container send requests
:mod:`.client_options`        which client options are harmless
:mod:`.resolver`              reading: find the container, check the authorisation, fetch
:mod:`.local_files`           reading local files
:mod:`.remote`                reading objects in object stores and on web servers
:mod:`.http_servers`          reading from web servers, without following redirects blindly
:mod:`.s3_literal_keys`       reading S3 objects whose keys obstore changes
:mod:`.error_remedies`        code that error messages recommend
:mod:`.vectorized_strings`    tests on many strings at once, for :mod:`.containers`
============================  =================================================================
"""

from icechunk_engine.config import VirtualChunkContainer, VirtualChunkSpec

__all__ = ["VirtualChunkContainer", "VirtualChunkSpec"]

"""How functions run: as they are, recorded, compiled or as CUDA graphs; on threads and in several processes."""

"""RunPod's management APIs: REST v1, REST v2 and GraphQL, each a thin translator to :mod:`ownpod.management`."""

"""Values of the system, as hypothesis makes them."""

from __future__ import annotations

import uuid

from hypothesis import strategies as st

from knot_ssh.names import LABEL, Owner, Principal, SpaceId, SpaceName, Zone

labels = st.from_regex(LABEL, fullmatch=True).filter(lambda text: text != "join")
"""A UUID among them is as likely as a collision."""
owners = labels.map(Owner)
zones = labels.map(Zone)
space_names = labels.map(SpaceName)
space_ids = st.uuids().map(uuid.UUID.__str__).map(SpaceId)
principals = st.builds(Principal, owners, zones)

"""Faults of sealing, keys and archives."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

_SEALING = "memory_store/hope_memory/sealing.py"
_SEALS = "memory_store/hope_memory/seals.py"
_KEY_FILE = "memory_store/hope_memory/key_file.py"
_VAULT = "memory_store/hope_memory/vault.py"
_KEY_STORE = "memory_store/hope_memory/key_store.py"

_T_SEALING = "tests/memory_store/test_sealing.py"
_T_KEYS = "tests/memory_store/test_vault.py"
_CANARY = "tests/memory_store/test_canary.py"

KEY_MUTANTS = (
    Mutant(
        "no associated data",
        "sealed bytes can be moved to another session, version or level",
        (
            Edit(
                _SEALING,
                "AESGCM(key).encrypt(nonce, data, context_bytes(context))",
                "AESGCM(key).encrypt(nonce, data, b'')",
            ),
            Edit(
                _SEALING,
                "AESGCM(key).decrypt(nonce, view[_CIPHER_AT:], context_bytes(context))",
                "AESGCM(key).decrypt(nonce, view[_CIPHER_AT:], b'')",
            ),
        ),
        (_T_SEALING,),
    ),
    Mutant(
        "level name not authenticated",
        "two levels of one commit can be exchanged",
        (Edit(_SEALS, "        place = (ref.birth, name, ref.origin,", "        place = (ref.birth, ref.origin,"),),
        (_T_SEALING, "tests/memory_store/test_history_contract.py"),
    ),
    Mutant(
        "piece index not authenticated",
        "pieces of a level can be exchanged",
        (Edit(_SEALS, "fingerprint, index, ref.num_pieces)\n", "fingerprint, ref.num_pieces)\n"),),
        (_T_SEALING,),
    ),
    Mutant(
        "version not authenticated",
        "an older manifest can be put in the place of a newer one",
        (
            Edit(
                _SEALS,
                "        return (kind, self.session.tenant, self.session.name, self.keys.birth, place)",
                "        return (kind, self.session.tenant, self.session.name, self.keys.birth)",
            ),
        ),
        (_T_SEALING,),
    ),
    Mutant(
        "ambiguous context",
        "names that join to the same text open each other's bytes",
        (Edit(_SEALING, '        out += (kind, len(data).to_bytes(4, "little"), data)', "        out += (data,)"),),
        (_T_SEALING,),
    ),
    Mutant(
        "nonce used twice",
        "two texts under one nonce give each other away",
        (
            Edit(
                _SEALING,
                "        key_id, key = list(self.keys.items())[-1]\n        nonce = os.urandom(_NONCE_BYTES)",
                "        key_id, key = list(self.keys.items())[-1]\n        nonce = bytes(_NONCE_BYTES)",
            ),
        ),
        (_T_SEALING,),
    ),
    Mutant(
        "fork shares the source's new key",
        "a fork reads what its source learns later",
        (
            Edit(
                _SEALING,
                "{name: self.keys[name] for name in kept}).with_new_key()",
                "{name: self.keys[name] for name in kept})",
            ),
        ),
        (_T_SEALING,),
    ),
    Mutant(
        "rotation loses old wraps",
        "after a new key is added, sessions of the old one cannot be read",
        (
            Edit(
                _KEY_FILE,
                "                keys[words[1]] = bytes.fromhex(words[2])",
                "                keys = {words[1]: bytes.fromhex(words[2])}",
            ),
        ),
        (_T_KEYS,),
    ),
    Mutant(
        "destroyed keys stay in the log",
        "a deleted session's key can be read out of the key store's files",
        (Edit(_KEY_STORE, "        await self._file.empty_log()\n", ""),),
        (_CANARY, _T_KEYS),
    ),
)

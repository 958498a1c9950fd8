//! Our types to the agent's messages and back.

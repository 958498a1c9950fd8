//! One thin function per call of the agent.

//! The Task service: one method = translate, call, translate.

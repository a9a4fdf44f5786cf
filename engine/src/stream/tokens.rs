//! Tokens of sessions that are expected.
//!
//! Whoever knows a token may begin the session once. It is 256 bits from the kernel, so
//! that nobody guesses one, and it is forgotten after a minute. A crash loses all of them:
//! their clients ask again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Session, TooManySessions};

/// How long one is good for.
const LIFE: Duration = Duration::from_secs(60);
/// Sessions that are expected at a time.
const MOST: usize = 1000;

/// Expected sessions by their tokens.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<HashMap<String, Expectation>>);

#[derive(Debug)]
struct Expectation {
    session: Session,
    until: Instant,
}

impl Tokens {
    /// Gives a session a token.
    pub(super) fn add(&self, session: Session) -> Result<String, TooManySessions> {
        let until = Instant::now() + LIFE;
        let mut expected = self.expected();
        if expected.len() >= MOST {
            let now = Instant::now();
            expected.retain(|_, expectation| expectation.until > now);
        }
        if expected.len() >= MOST {
            return Err(TooManySessions(expected.len()));
        }
        let token = crate::ids::secret();
        expected.insert(token.clone(), Expectation { session, until });
        Ok(token)
    }

    /// Takes the session of a token, which is good for no other from then on.
    pub(super) fn take(&self, token: &str) -> Option<Session> {
        let expectation = self.expected().remove(token)?;
        (expectation.until > Instant::now()).then_some(expectation.session)
    }

    fn expected(&self) -> MutexGuard<'_, HashMap<String, Expectation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PodId;

    fn session() -> Session {
        Session::Ports {
            pod: PodId::random(),
            ports: Vec::new(),
        }
    }

    #[test]
    fn a_token_is_good_once() {
        let tokens = Tokens::default();
        let token = tokens.add(session()).expect("room");
        assert!(token.len() >= 32 && token.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert!(tokens.take("").is_none() && tokens.take(&token[1..]).is_none());
        assert!(tokens.take(&token).is_some());
        assert!(tokens.take(&token).is_none());
    }

    #[test]
    fn who_asks_and_never_connects_is_refused_until_his_tokens_are_old() {
        let tokens = Tokens::default();
        for _ in 0..MOST {
            tokens.add(session()).expect("room");
        }
        assert!(tokens.add(session()).is_err());
        let old = Instant::now();
        for expectation in tokens.expected().values_mut() {
            expectation.until = old;
        }
        let token = tokens.add(session()).expect("room again");
        assert_eq!(tokens.expected().len(), 1);
        assert!(tokens.take(&token).is_some());
    }
}

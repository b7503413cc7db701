//! As whom a client connects: given once, or asked for anew before every connection, because
//! tokens expire and reconnecting must not.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use super::Error;
use crate::mqtt::{Version, check_pairs};

/// What CONNECT says about who connects. The methods of [`Options`](super::Options) fill it in
/// once; [`Options::login_with`](super::Options::login_with) changes it before each connection.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// The user name.
    pub username: Option<String>,
    /// The password; before 5.0 only with a user name.
    pub password: Option<Bytes>,
    /// An authentication method that needs no challenge, and its data (5.0).
    pub authentication: Option<(String, Option<Bytes>)>,
    /// The user properties of CONNECT (5.0).
    pub user_properties: Vec<(Box<str>, Box<str>)>,
}

impl Login {
    /// Whether CONNECT can carry it.
    pub(crate) fn check(&self, version: Version) -> Result<(), Error> {
        if !version.is_v5() && self.password.is_some() && self.username.is_none() {
            return Err(Error::Options("a password needs a user name before MQTT 5.0")); // [MQTT-3.1.2-22]
        }
        let method = self.authentication.as_ref().map(|(method, _)| method);
        for (text, name) in
            [(self.username.as_ref(), "the user name"), (method, "the authentication method")]
        {
            if text.is_some_and(|text| text.contains('\0')) {
                return Err(Error::Nul(name)); // [MQTT-1.5.4-2]
            }
        }
        Ok(check_pairs(&self.user_properties)?)
    }
}

/// Secrets must not end up in a log.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Login, Error>> + Send>>;

/// Who is asked before every connection.
#[derive(Clone)]
pub(crate) struct LoginSource(Arc<dyn Fn(Login) -> Answer + Send + Sync>);

impl LoginSource {
    pub(crate) fn new<F, A, E>(ask: F) -> Self
    where
        F: Fn(Login) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Login, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        Self(Arc::new(move |given| {
            let answer = ask(given);
            Box::pin(async move { answer.await.map_err(|error| Error::Login(error.into().into())) })
        }))
    }

    /// The login for the next connection; `given` is what the options say.
    pub(crate) async fn ask(&self, given: Login) -> Result<Login, Error> {
        (self.0)(given).await
    }
}

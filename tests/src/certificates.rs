//! Certificates of one run: an authority, and two identities that it vouches for.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

/// The files of one run.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// Of the end that opens connections.
    pub client: Identity,
    /// Of the end that accepts them.
    pub server: Identity,
}

/// Who an end says it is, and the proof of it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The DNS name in the certificate.
    pub name: &'static str,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Both in one file, as `HAProxy` wants them.
    pub bundle: PathBuf,
}

impl Certificates {
    /// Makes them in this folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn make(dir: &Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = params("authority of the bed", Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = write(dir, "authority.pem", &params.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(params, key);
        Ok(Self {
            authority,
            client: Identity::issue(dir, "client-proxy", ExtendedKeyUsagePurpose::ClientAuth, &issuer)?,
            server: Identity::issue(dir, "server-proxy", ExtendedKeyUsagePurpose::ServerAuth, &issuer)?,
        })
    }
}

impl Identity {
    fn issue(
        dir: &Path,
        name: &'static str,
        purpose: ExtendedKeyUsagePurpose,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = params(name, vec![name.to_owned()])?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        let (certificate, key) = (params.signed_by(&key, issuer)?.pem(), key.serialize_pem());
        Ok(Self {
            name,
            bundle: write(dir, &format!("{name}.bundle.pem"), &format!("{certificate}{key}"))?,
            certificate: write(dir, &format!("{name}.pem"), &certificate)?,
            key: write(dir, &format!("{name}.key.pem"), &key)?,
        })
    }
}

/// For a subject of its own: OpenSSL takes a certificate with its issuer's name for one that vouches for itself.
fn params(subject: &str, names: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    Ok(params)
}

fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

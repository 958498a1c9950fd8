//! Which certificates a revocation list covers: its issuing distribution point (RFC 5280, 5.2.5).
//!
//! The rules are OpenSSL's, without its support for indirect lists and for lists of some reasons only.

use x509_cert::Certificate as X509;
use x509_cert::crl::TbsCertList;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::crl::dp::{DistributionPoint, IssuingDistributionPoint};
use x509_cert::ext::pkix::name::DistributionPointName;
use x509_cert::ext::pkix::{BasicConstraints, CrlDistributionPoints};

/// Not the constant of x509-cert, which has another extension's number for this one.
const ISSUING_DISTRIBUTION_POINT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.28");

/// Why the list says nothing about this certificate, called `name` in messages. The extension narrows it whether
/// or not it is critical.
pub(crate) fn check(list: &TbsCertList, name: &str, certificate: &X509) -> Result<(), String> {
    let extensions = list.crl_extensions.as_deref().unwrap_or_default();
    let mut points = extensions.iter().filter(|e| e.extn_id == ISSUING_DISTRIBUTION_POINT);
    let Some(point) = points.next() else { return Ok(()) };
    if points.next().is_some() {
        return Err("it is there twice".to_owned());
    }
    let point = IssuingDistributionPoint::from_der(point.extn_value.as_bytes()).map_err(|e| e.to_string())?;
    let other = |why: String| Err(format!("different CRL scope: {why}"));
    if point.indirect_crl {
        return other("it is an indirect list".to_owned());
    }
    if point.only_contains_attribute_certs {
        return other("only attribute certificates".to_owned());
    }
    if point.only_some_reasons.is_some() {
        return other("only some reasons".to_owned());
    }
    let ca = is_ca(name, certificate)?;
    if point.only_contains_ca_certs && !ca {
        return other(format!("only CA certificates, {name} is none"));
    }
    if point.only_contains_user_certs && ca {
        return other(format!("only user certificates, {name} is a CA's"));
    }
    match &point.distribution_point {
        Some(point) if !is_of(point, name, certificate)? => {
            other(format!("it is not of a distribution point of {name}"))
        }
        _ => Ok(()),
    }
}

fn is_ca(name: &str, certificate: &X509) -> Result<bool, String> {
    let constraints = certificate.tbs_certificate.get::<BasicConstraints>();
    match constraints.map_err(|e| format!("basic constraints of {name}: {e}"))? {
        Some((_, constraints)) => Ok(constraints.ca),
        None => Ok(false),
    }
}

/// Does the certificate say that its list is the one at `name`?
fn is_of(listed: &DistributionPointName, name: &str, certificate: &X509) -> Result<bool, String> {
    let points = certificate.tbs_certificate.get::<CrlDistributionPoints>();
    let points = points.map_err(|e| format!("CRL distribution points of {name}: {e}"))?;
    let whole = |point: &DistributionPoint| point.reasons.is_none() && point.crl_issuer.is_none();
    let fits = |point: &DistributionPoint| {
        whole(point) && point.distribution_point.as_ref().is_some_and(|own| same(own, listed))
    };
    Ok(points.is_some_and(|(_, points)| points.0.iter().any(fits)))
}

/// One common name is enough.
fn same(a: &DistributionPointName, b: &DistributionPointName) -> bool {
    match (a, b) {
        (DistributionPointName::FullName(a), DistributionPointName::FullName(b)) => {
            a.iter().any(|name| b.contains(name))
        }
        _ => a == b,
    }
}

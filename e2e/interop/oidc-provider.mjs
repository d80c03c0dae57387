// Runs the authorization server oidc-provider: node oidc-provider.mjs SETTINGS.json
//
// SETTINGS.json: module (path of the installed oidc-provider), socket (unix socket to listen on), issuer, and
// configuration, which is oidc-provider's own. What of that is no data is here: it issues tokens for any API that a client
// names (RFC 8707), and those are for the scopes of the API alone.
import { readFile } from 'node:fs/promises';
import { pathToFileURL } from 'node:url';

const { module, socket, issuer, configuration } = JSON.parse(await readFile(process.argv[2], 'utf8'));
const { default: Provider } = await import(pathToFileURL(module));

configuration.features.resourceIndicators = {
  enabled: true,
  getResourceServerInfo: (ctx, resource) => ({ audience: resource, scope: 'api:read api:write', accessTokenFormat: 'opaque' }),
};
// Everybody has the same address, which is verified for clients that ask for the scope email, and of which nothing is said to those
// that ask for contact.
configuration.claims = { openid: ['sub'], email: ['email', 'email_verified'], contact: ['email'] };
configuration.findAccount = (ctx, sub) => ({ accountId: sub, claims: () => ({ sub, email: 'operator@interop.test', email_verified: true }) });
const provider = new Provider(issuer, configuration);
for (const event of ['server_error', 'authorization.error', 'grant.error', 'registration_create.error', 'revocation.error']) {
  provider.on(event, (_, err) => console.error(`${event}: ${err.error}: ${err.error_detail ?? err.error_description ?? err.stack}`));
}
provider.listen(socket, () => console.error('listening'));

# s_client.sh HOST: one request with the placeholder by openssl's own client, by way of the proxy that HTTPS_PROXY names.
host=$1
case $host in *:*) to=$host ;; *) to=$host:443 ;; esac
if [ -n "$HTTPS_PROXY" ]; then
  proxy=${HTTPS_PROXY#*://} proxy=${proxy%/}
  user=${proxy%%:*} password=${proxy#*:} password=${password%@*}
  set -- -proxy "${proxy##*@}" -proxy_user "$user" -proxy_pass "pass:$password"
else
  set --
fi
answer=$(printf 'GET /openssl HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n' "$host" "$ANTHROPIC_AUTH_TOKEN" |
  openssl s_client -quiet -x509_strict -verify_return_error -verify_hostname "${host%:*}" -servername "${host%:*}" -connect "$to" "$@")
printf '%s\n' "$answer"
case $answer in "HTTP/1.1 200 "*) ;; *) exit 1 ;; esac

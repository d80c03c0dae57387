import java.net.Authenticator;
import java.net.PasswordAuthentication;
import java.net.URI;
import java.net.URL;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import javax.net.ssl.HttpsURLConnection;

/** Client LIBRARY URL: one request with the placeholder. "authenticated" tells the proxy what HTTPS_PROXY holds. */
public class Client {
    static final String bearer = "Bearer " + System.getenv("ANTHROPIC_AUTH_TOKEN");

    public static void main(String[] args) throws Exception {
        String[] name = args[0].split("-");
        boolean authenticated = name.length > 1 && System.getenv("HTTPS_PROXY") != null;
        if (authenticated) {
            // Basic is off for CONNECT unless this says otherwise.
            System.setProperty("jdk.http.auth.tunneling.disabledSchemes", "");
        }
        switch (name[0]) {
            case "HttpClient" -> http(args[1], authenticated);
            case "HttpsURLConnection" -> https(args[1], authenticated);
            default -> throw new IllegalArgumentException(args[0]);
        }
    }

    static String[] credentials() {
        return URI.create(System.getenv("HTTPS_PROXY")).getRawUserInfo().split(":", 2);
    }

    static void http(String url, boolean authenticated) throws Exception {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url)).header("Authorization", bearer);
        if (authenticated) { // An Authenticator would take the other header away.
            byte[] both = String.join(":", credentials()).getBytes(StandardCharsets.UTF_8);
            request.header("Proxy-Authorization", "Basic " + Base64.getEncoder().encodeToString(both));
        }
        HttpResponse<String> response = HttpClient.newHttpClient().send(request.build(), HttpResponse.BodyHandlers.ofString());
        if (response.statusCode() != 200) {
            throw new RuntimeException(response.statusCode() + " " + response.body());
        }
    }

    static void https(String url, boolean authenticated) throws Exception {
        if (authenticated) {
            String[] user = credentials();
            Authenticator.setDefault(new Authenticator() {
                @Override
                protected PasswordAuthentication getPasswordAuthentication() {
                    return getRequestorType() == RequestorType.PROXY ? new PasswordAuthentication(user[0], user[1].toCharArray()) : null;
                }
            });
        }
        HttpsURLConnection connection = (HttpsURLConnection) new URL(url).openConnection();
        connection.setRequestProperty("Authorization", bearer);
        connection.getInputStream().readAllBytes();
    }
}

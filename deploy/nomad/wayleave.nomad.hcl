# Two gates and their Envoy as one group, one on each of two clients. They log in to Vault with their workload identity:
#
#   bao auth enable -path=jwt-nomad jwt
#   bao write auth/jwt-nomad/config jwks_url=https://nomad.internal:4646/.well-known/jwks.json
#   bao write auth/jwt-nomad/role/wayleave-gateway role_type=jwt user_claim=/nomad_job_id user_claim_json_pointer=true \
#     bound_audiences=vault bound_claims=@nomad-claims.json token_policies=wayleave-gateway token_period=15m
#
# with {"nomad_namespace": "default", "nomad_job_id": "wayleave"} as nomad-claims.json. Run it: nomad job run wayleave.nomad.hcl

variable "image" {
  type    = string
  default = "registry.example.com/wayleave:1.2.3"
}

variable "envoy_image" {
  type    = string
  default = "registry.example.com/wayleave-envoy:1.2.3"
}

job "wayleave" {
  datacenters = ["*"]
  type        = "service"

  update {
    max_parallel     = 1
    min_healthy_time = "10s"
    healthy_deadline = "3m"
    auto_revert      = true
  }

  group "gate" {
    count = 2

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    # What Vault does not have yet stays on the client, and moves with the group where it can.
    ephemeral_disk {
      sticky  = true
      migrate = true
      size    = 300
    }

    network {
      mode = "bridge"
      port "proxy" {
        to = 3129
      }
      port "metrics_a" {
        to = 9180
      }
      port "metrics_b" {
        to = 9181
      }
    }

    service {
      name     = "wayleave"
      port     = "proxy"
      provider = "nomad"
      check {
        type     = "tcp"
        interval = "10s"
        timeout  = "2s"
      }
    }

    # Ready gates pace an update; a gate that is not ready goes on with the tokens that it has.
    service {
      name     = "wayleave-metrics"
      port     = "metrics_a"
      provider = "nomad"
      check {
        type      = "http"
        path      = "/readyz"
        interval  = "10s"
        timeout   = "2s"
        on_update = "require_healthy"
      }
    }

    task "gate-a" {
      driver = "docker"
      user   = "65532:65532"
      lifecycle {
        hook    = "prestart"
        sidecar = true
      }
      config {
        image           = var.image
        args            = ["serve", "-c", "/local/wayleave.yaml", "--run-dir", "/alloc/tmp/run", "--spool-dir", "/alloc/data/spool-a", "--replica", "a"]
        readonly_rootfs = true
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]
      }
      identity {
        name = "vault"
        aud  = ["vault"]
        file = true # secrets/nomad_vault.jwt, which Nomad keeps fresh
        ttl  = "1h"
      }
      template {
        data        = file("wayleave.yaml")
        destination = "local/wayleave.yaml"
        change_mode = "noop" # gates see a change by themselves
      }
      kill_timeout = "120s" # for a last refresh; max_kill_timeout of the Nomad client, 30s where nobody says more, cuts it
      resources {
        cpu        = 200
        memory     = 256
        memory_max = 512
      }
    }

    task "gate-b" {
      driver = "docker"
      user   = "65532:65532"
      lifecycle {
        hook    = "prestart"
        sidecar = true
      }
      config {
        image           = var.image
        args            = ["serve", "-c", "/local/wayleave.yaml", "--run-dir", "/alloc/tmp/run", "--spool-dir", "/alloc/data/spool-b", "--replica", "b"]
        readonly_rootfs = true
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]
      }
      identity {
        name = "vault"
        aud  = ["vault"]
        file = true
        ttl  = "1h"
      }
      template {
        data        = file("wayleave.yaml")
        destination = "local/wayleave.yaml"
        change_mode = "noop"
      }
      kill_timeout = "120s" # for a last refresh; max_kill_timeout of the Nomad client, 30s where nobody says more, cuts it
      resources {
        cpu        = 200
        memory     = 256
        memory_max = 512
      }
    }

    task "envoy" {
      driver = "docker"
      user   = "65532:65532"
      config {
        image           = var.envoy_image
        args            = ["envoy", "-c", "/local/wayleave.yaml", "--run-dir", "/alloc/tmp/run"]
        readonly_rootfs = true
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]
        mount {
          type   = "tmpfs"
          target = "/tmp"
          tmpfs_options {
            size = 16777216
          }
        }
      }
      template {
        data        = file("wayleave.yaml")
        destination = "local/wayleave.yaml"
        change_mode = "noop"
      }
      shutdown_delay = "10s" # until no worker is sent here any longer
      kill_timeout   = "20s"
      resources {
        cpu        = 500
        memory     = 512
        memory_max = 1024
      }
    }
  }
}

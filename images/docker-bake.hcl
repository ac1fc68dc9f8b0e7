# docker buildx bake -f images/docker-bake.hcl            both images, for this machine
# docker buildx bake -f images/docker-bake.hcl release    pushes them with SBOM and provenance
# images/build.sh sets the variables; components/images.py is where the names come from.
variable "CPU_IMAGE" {}
variable "CUDA_IMAGE" {}
variable "VERSION" {}
variable "REVISION" {}

group "default" {
  targets = ["cpu", "cuda"]
}

group "release" {
  targets = ["cpu-release", "cuda-release"]
}

target "common" {
  context    = "."
  dockerfile = "images/Dockerfile"
  platforms  = ["linux/amd64"]
  args = {
    VERSION  = VERSION
    REVISION = REVISION
  }
}

target "attested" {
  output = ["type=registry"]
  attest = ["type=provenance,mode=max", "type=sbom"]
}

target "cpu" {
  inherits = ["common"]
  target   = "cpu"
  tags     = [CPU_IMAGE]
}

target "cuda" {
  inherits = ["common"]
  target   = "cuda"
  tags     = [CUDA_IMAGE]
}

target "cpu-release" {
  inherits = ["cpu", "attested"]
}

target "cuda-release" {
  inherits = ["cuda", "attested"]
}
